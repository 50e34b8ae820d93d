"""Virtual checkpoints: expressions over checkpoints such as `lerp(run@0, run@5000, 0.3)`.

Every function is linear, so an expression gives each checkpoint a coefficient for each tensor: see `coefficients`.

    expression = average | lerp | graft | sum | checkpoint
    average    = "avg" "(" member { "," member } ")"                   the mean; a checkpoint given twice counts twice
    member     = expression | range
    lerp       = "lerp" "(" expression "," expression "," weight ")"   weight from 0 (the first) to 1 (the second)
    graft      = "graft" "(" expression "," expression "," choice { "," choice } ")"
                                                    the first, but for the chosen tensors, which are the second's
    choice     = "layers" "=" span { "|" span } | "parts" "=" part { "|" part }
    span       = layer [ "-" layer ]                                   counted from 0, both ends included
    part       = "embeddings" | "head" | "norm"
    sum        = checkpoint " + " "lora" "(" path ")"                  the weights with a LoRA adapter merged into them
    checkpoint = run "@" step [ ":" variant ] | "base" | path
    range      = run "@" first ".." last [ "/" stride ] [ ":" variant ]
                                                    both ends included; with a stride every one of its steps must exist
    path       = characters other than blanks , ( ) " ', or any between quotes

Blanks between tokens are ignored. `base` is the base of the run that comes first in the canonical form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from evalsvc.errors import InvalidRequest
from evalsvc.spec.names import MAX_STEP, STEPS, checkpoint_name

T = TypeVar("T")

ARITHMETIC = 1
"""Version of the arithmetic on tensors; part of a virtual checkpoint's digest."""

FUNCTIONS = ("avg", "lerp", "graft")
ADAPTER = "lora"
PARTS = ("embeddings", "head", "norm")
"""Parts that a graft may choose in addition to layers: token table (with its norm, if there is one), output table, last
norm."""

MAX_CHECKPOINTS = 256

_PLAIN = re.compile(r"""[^\s,()"'@]+""")
"""Text that needs no quotes and is not a step."""

Part = int | str

MAX_DEPTH = 16
MAX_LAYER = 9_999

_BLANKS = re.compile(r"\s*")
_WORD = re.compile(r"""[^\s,()"']+""")
_QUOTED = re.compile(r""""([^"]+)"|'([^']+)'""")
_WEIGHT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_CHECKPOINT = "a checkpoint (RUN@STEP[:VARIANT], base, a path) or " + ", ".join(f"{name}(…)" for name in FUNCTIONS)
_ADAPTER = f"{ADAPTER}(FOLDER), the folder of an adapter"
_CHOICE = "layers=0-11|14 or parts=" + "|".join(PARTS)
_SIGNS = {"(": "bracket", ",": "comma", ")": "closing bracket"}
_SHOWN = 80


@dataclass(frozen=True)
class Step:
    run: str
    step: int
    variant: str = "raw"

    def __str__(self) -> str:
        return checkpoint_name(self.run, self.step, self.variant)


@dataclass(frozen=True)
class Steps:
    """Checkpoints of a run from `first` to `last`: every `stride` steps, or all that exist if `stride` is None."""

    run: str
    first: int
    last: int
    stride: int | None = None
    variant: str = "raw"

    def __str__(self) -> str:
        stride = "" if self.stride is None else f"/{self.stride}"
        variant = "" if self.variant == "raw" else f":{self.variant}"
        return f"{self.run}@{self.first}..{self.last}{stride}{variant}"


@dataclass(frozen=True)
class Base:
    """The checkpoint that the run's checkpoints are compared with."""

    def __str__(self) -> str:
        return "base"


@dataclass(frozen=True)
class File:
    path: str

    def __str__(self) -> str:
        if self.path != "base" and _PLAIN.fullmatch(self.path):
            return self.path
        return f"'{self.path}'" if '"' in self.path else f'"{self.path}"'


@dataclass(frozen=True)
class Average:
    members: tuple[Expression | Steps, ...]


@dataclass(frozen=True)
class Lerp:
    first: Expression
    second: Expression
    weight: float
    """Weight of the second checkpoint; the first has 1 − weight."""


@dataclass(frozen=True)
class Graft:
    first: Expression
    second: Expression
    chosen: frozenset[Part]


Leaf = Step | Base | File


@dataclass(frozen=True)
class Sum:
    """A checkpoint with the LoRA adapter in a folder, read as one checkpoint."""

    first: Leaf
    adapter: File


Expression = Leaf | Average | Lerp | Graft | Sum


def canonical(expression: Expression | Steps, name: Callable[[Leaf], str] = str) -> str:
    """Return the canonical form, the same for any spacing and order; `name` returns the text for a checkpoint."""
    if isinstance(expression, Steps):
        return str(expression)
    if isinstance(expression, Leaf):
        return name(expression)
    if isinstance(expression, Sum):
        return f"{name(expression.first)} + {ADAPTER}({name(expression.adapter)})"
    if isinstance(expression, Average):
        return f"avg({', '.join(sorted((canonical(item, name) for item in expression.members), key=_natural))})"
    operands = f"{canonical(expression.first, name)}, {canonical(expression.second, name)}"
    if isinstance(expression, Lerp):
        return f"lerp({operands}, {repr(expression.weight + 0.0).removesuffix('.0')})"
    layers = sorted(part for part in expression.chosen if isinstance(part, int))
    parts = [part for part in PARTS if part in expression.chosen]
    choices = [f"layers={_spans(layers)}"] * bool(layers) + [f"parts={'|'.join(parts)}"] * bool(parts)
    return f"graft({operands}, {', '.join(choices)})"


def digest_of(expression: Expression, digests: Mapping[str, str]) -> str:
    """Return a virtual checkpoint's digest from its checkpoints' `digests` by name; the names do not count."""
    content = canonical(expression, lambda leaf: digests[str(leaf)])
    return hashlib.sha256(f"virtual checkpoint {ARITHMETIC}\n{content}".encode()).hexdigest()


def default_variant(expression: Expression) -> str:
    """Return a name that distinguishes the virtual checkpoint from all others, such as `lerp-3f2a91bc04`."""
    text = canonical(expression)
    return f"{text.partition('(')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def written(expression: Expression | Steps) -> list[Leaf | Sum | Steps]:
    """Return the checkpoints, sums and ranges in an expression, each once, in the order of the text."""
    if isinstance(expression, Leaf | Sum | Steps):
        return [expression]
    return list(dict.fromkeys(leaf for argument in _arguments(expression) for leaf in written(argument)))


def leaves(expression: Expression) -> list[Leaf | Sum]:
    return [leaf for leaf in written(expression) if not isinstance(leaf, Steps)]


def replaced(
    expression: Expression, leaf: Callable[[Leaf], Expression], steps: Callable[[Steps], Sequence[Expression]]
) -> Expression:
    """Return the expression with its checkpoints and ranges replaced."""
    if isinstance(expression, Leaf):
        return leaf(expression)
    if isinstance(expression, Sum):
        first = leaf(expression.first)
        assert isinstance(first, Leaf), "an adapter is added to a checkpoint with files"
        return Sum(first, expression.adapter)
    if isinstance(expression, Average):
        members: list[Expression] = []
        for member in expression.members:
            members += steps(member) if isinstance(member, Steps) else [replaced(member, leaf, steps)]
        return Average(tuple(members))
    first, second = (replaced(argument, leaf, steps) for argument in (expression.first, expression.second))
    if isinstance(expression, Lerp):
        return Lerp(first, second, expression.weight)
    return Graft(first, second, expression.chosen)


def coefficients(expression: Expression, part: Part) -> dict[str, float]:
    """Return the coefficient of each checkpoint in the tensors of a layer or part, by name; coefficients sum to 1."""
    if isinstance(expression, Leaf | Sum):
        return {canonical(expression): 1.0}
    if isinstance(expression, Graft):
        return coefficients(expression.second if part in expression.chosen else expression.first, part)
    if isinstance(expression, Lerp):
        terms = [(expression.first, 1 - expression.weight), (expression.second, expression.weight)]
    else:
        members = [member for member in expression.members if not isinstance(member, Steps)]
        assert len(members) == len(expression.members), "ranges are replaced by what is in them first"
        terms = [(member, 1 / len(members)) for member in members]
    total: dict[str, float] = {}
    for term, weight in terms:
        for leaf, share in coefficients(term, part).items():
            total[leaf] = total.get(leaf, 0.0) + weight * share
    return total


def part_of(name: str) -> Part:
    """Return the layer or part that a tensor of open_lm's Transformer belongs to, by the tensor's name."""
    first, _, rest = name.partition(".")
    if first == "layers":
        return int(rest.partition(".")[0])
    return {"output": "head", "image_head": "head", "norm": "norm"}.get(first, "embeddings")


def require_parts(expression: Expression, n_layers: int, weight_tying: bool) -> None:
    """Raise InvalidRequest if a graft chooses layers or parts that a model of this shape does not have."""
    if isinstance(expression, Leaf | Sum):
        return
    for argument in _arguments(expression):
        if not isinstance(argument, Steps):
            require_parts(argument, n_layers, weight_tying)
    if not isinstance(expression, Graft):
        return
    beyond = sorted(part for part in expression.chosen if isinstance(part, int) and part >= n_layers)
    if beyond:
        raise InvalidRequest(
            f"the graft chooses layers={_spans(beyond)}, but the model has {n_layers} layers; "
            f"choose among 0-{n_layers - 1}"
        )
    if weight_tying and ("head" in expression.chosen) != ("embeddings" in expression.chosen):
        raise InvalidRequest(
            "the graft chooses one of embeddings and head, but the model has one table for both; "
            "write parts=embeddings|head"
        )


def _spans(numbers: Sequence[int]) -> str:
    # `0-3|7` for [0, 1, 2, 3, 7]
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "|".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _natural(text: str) -> tuple[list[tuple[int, str]], str]:
    # Step 200 comes before step 1000.
    return [(len(piece), piece) if piece.isdigit() else (0, piece) for piece in re.split(r"(\d+)", text)], text


def _arguments(expression: Average | Lerp | Graft) -> Sequence[Expression | Steps]:
    return expression.members if isinstance(expression, Average) else (expression.first, expression.second)


def is_expression(uri: str) -> bool:
    """Return whether a uri is meant as an expression, valid or not: a function's name and a bracket, or a sum."""
    begins = rf"\s*(({'|'.join(FUNCTIONS)})\s*\(|[a-z]\w*\s*\(.*\)\s*$)"
    return re.match(rf"{begins}|.*\s\+\s+{ADAPTER}\s*\(", uri, re.DOTALL) is not None


def parse_expression(text: str) -> Expression:
    parser = _Parser(text)
    expression = parser.expression(0)
    if parser.peek():
        parser.fail("the end, since the expression is complete")
    return expression


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        """Start of the next token."""

    def expression(self, inside: int) -> Expression:
        begin = self._skip()
        expression = self._member(inside)
        if isinstance(expression, Steps):
            self.fail("one checkpoint (a range is for avg(…) only)", begin)
        return expression

    def _member(self, inside: int) -> Expression | Steps:
        begin = self._skip()
        member = self._term(inside)
        if self.peek() != "+":
            return member
        if not isinstance(member, Leaf):
            self.fail("a single checkpoint before +", begin)
        self.at += 1
        begin = self._skip()
        if self._word(_ADAPTER) != ADAPTER:
            self.fail(_ADAPTER, begin)
        self._take("(", _ADAPTER)
        begin = self._skip()
        if not isinstance(adapter := self._term(inside), File):
            self.fail("the folder of an adapter", begin)
        self._take(")")
        return Sum(member, adapter)

    def _term(self, inside: int) -> Expression | Steps:
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

    def _skip(self) -> int:
        blanks = _BLANKS.match(self.text, self.at)
        self.at = blanks.end() if blanks else self.at
        return self.at

    def peek(self) -> str:
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
