"""The text form of expressions over checkpoints.

    expression = average | lerp | graft | checkpoint
    average    = "avg" "(" member { "," member } ")"                   the mean; a checkpoint given twice counts twice
    member     = expression | range
    lerp       = "lerp" "(" expression "," expression "," weight ")"   weight from 0 (the first) to 1 (the second)
    graft      = "graft" "(" expression "," expression "," choice { "," choice } ")"
                                                    the first, but for the chosen tensors, which are the second's
    choice     = "layers" "=" span { "|" span } | "parts" "=" part { "|" part }
    span       = layer [ "-" layer ]                                   counted from 0, both ends included
    part       = "embeddings" | "head" | "norm"
    checkpoint = run "@" step [ ":" variant ] | "base" | path
    range      = run "@" first ".." last [ "/" stride ] [ ":" variant ]
                                                    both ends included; with a stride every one of its steps must exist
    path       = characters other than blanks , ( ) " ', or any between quotes

Blanks between tokens are ignored. `base` is the base of the run that comes first in the canonical form. `expression.py`
defines the meaning of expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from evalsvc.checkpoints.expression import (
    FUNCTIONS,
    PARTS,
    Average,
    Base,
    Expression,
    File,
    Graft,
    Lerp,
    Part,
    Step,
    Steps,
)
from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import MAX_STEP, STEPS

T = TypeVar("T")

MAX_DEPTH = 16
MAX_LAYER = 9_999

_BLANKS = re.compile(r"\s*")
_WORD = re.compile(r"""[^\s,()"']+""")
_QUOTED = re.compile(r""""([^"]+)"|'([^']+)'""")
_WEIGHT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_CHECKPOINT = "a checkpoint (RUN@STEP[:VARIANT], base, a path) or " + ", ".join(f"{name}(…)" for name in FUNCTIONS)
_CHOICE = "layers=0-11|14 or parts=" + "|".join(PARTS)
_SIGNS = {"(": "bracket", ",": "comma", ")": "closing bracket"}
_SHOWN = 80


def is_expression(uri: str) -> bool:
    """Return whether a uri is meant as an expression, valid or not: a function's name and a bracket."""
    return re.match(rf"\s*(({'|'.join(FUNCTIONS)})\s*\(|[a-z]\w*\s*\(.*\)\s*$)", uri, re.DOTALL) is not None


def parse_expression(text: str) -> Expression:
    """Parse an expression, see the grammar above."""
    parser = _Parser(text)
    expression = parser.expression(0)
    if parser.peek():
        parser.fail("the end, since the expression is complete")
    return expression


class _Parser:
    """A recursive descent parser; `at` is the start of the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def expression(self, inside: int) -> Expression:
        begin = self._skip()
        expression = self._member(inside)
        if isinstance(expression, Steps):
            self.fail("one checkpoint (a range is for avg(…) only)", begin)
        return expression

    def _member(self, inside: int) -> Expression | Steps:
        begin = self._skip()
        if quoted := _QUOTED.match(self.text, begin):
            self.at = quoted.end()
            return File(quoted[1] or quoted[2])
        word = self._word(_CHECKPOINT)
        if self.peek() == "(":
            return self._function(word, begin, inside + 1)
        if word == "base":
            return Base()
        if (match := STEPS.fullmatch(word)) is None:
            return File(word)
        run, first, variant = match["run"], int(match["first"]), match["variant"] or "raw"
        if match["last"] is None:
            if first > MAX_STEP:
                self.fail(f"a step of at most {MAX_STEP}", begin)
            return Step(run, first, variant)
        last, stride = int(match["last"]), None if match["stride"] is None else int(match["stride"])
        if first > last or last > MAX_STEP:
            self.fail(f"the lower step before the higher step, up to {MAX_STEP}", begin)
        if stride == 0:
            self.fail("a stride of at least 1", begin)
        return Steps(run, first, last, stride, variant)

    def _function(self, name: str, begin: int, inside: int) -> Expression:
        if name not in FUNCTIONS:
            self.fail(f"one of {', '.join(FUNCTIONS)}", begin)
        if inside > MAX_DEPTH:
            self.fail(f"at most {MAX_DEPTH} levels of nested functions", begin)
        self._take("(")
        if name == "avg":
            return Average(tuple(self._many(lambda: self._member(inside))))
        first = self.expression(inside)
        self._take(",")
        second = self.expression(inside)
        self._take(",")
        if name == "graft":
            return Graft(first, second, frozenset[Part]().union(*self._many(self._choice)))
        begin, allowed = self._skip(), "a weight from 0 (the first) to 1 (the second)"
        weight = self._word(allowed)
        if not _WEIGHT.fullmatch(weight) or not 0 <= float(weight) <= 1:
            self.fail(allowed, begin)
        self._take(")")
        return Lerp(first, second, float(weight))

    def _many(self, item: Callable[[], T]) -> list[T]:
        items = [item()]
        while self.peek() == ",":
            self._take(",")
            items.append(item())
        self._take(")", "a comma or a closing bracket")
        return items

    def _choice(self) -> set[Part]:
        begin = self._skip()
        text = self._word(_CHOICE)
        while self.peek() not in ("", ",", "(", ")", '"', "'"):  # blanks around = and |
            text += self._word(_CHOICE)
        kind, _, items = text.partition("=")
        if kind not in ("layers", "parts") or not items:
            self.fail(_CHOICE, begin)
        chosen: set[Part] = set()
        for item in items.split("|"):
            if kind == "parts":
                if item not in PARTS:
                    self.fail(f"any of {', '.join(PARTS)}, separated by |", begin)
                chosen.add(item)
                continue
            if (span := _SPAN.fullmatch(item)) is None:
                self.fail("layers counted from 0, or spans of layers, such as layers=0-11|14", begin)
            first, last = int(span[1]), int(span[2] or span[1])
            if first > last or last > MAX_LAYER:
                self.fail(f"the lower layer before the higher layer, up to {MAX_LAYER}", begin)
            chosen.update(range(first, last + 1))
        return chosen

    # tokens

    def _skip(self) -> int:
        blanks = _BLANKS.match(self.text, self.at)
        self.at = blanks.end() if blanks else self.at
        return self.at

    def peek(self) -> str:
        """Return the next character that is not blank; empty at the end."""
        at = self._skip()
        return self.text[at : at + 1]

    def _take(self, sign: str, allowed: str | None = None) -> None:
        if self.peek() != sign:
            self.fail(allowed or f"a {_SIGNS[sign]}")
        self.at += 1

    def _word(self, allowed: str) -> str:
        word = _WORD.match(self.text, self._skip())
        if word is None:
            self.fail(allowed)
        self.at = word.end()
        return word[0]

    def fail(self, allowed: str, at: int | None = None) -> NoReturn:
        at = self._skip() if at is None else at
        word = _QUOTED.match(self.text, at) or _WORD.match(self.text, at)
        rest = (word[0] if word else self.text[at : at + 1])[:_SHOWN]
        next_text = repr(rest) if rest else "the end"
        shown = self.text if len(self.text) <= _SHOWN else self.text[:_SHOWN] + "…"
        raise InvalidRequest(f"in {shown!r} at character {at + 1}: expected {allowed}; found {next_text}")
