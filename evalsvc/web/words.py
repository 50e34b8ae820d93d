"""Word diffs: which words of a text are new, and which are gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

MAX_WORDS = 600
"""Words of a text that are compared: the time grows with the square of the number."""

_WORD = re.compile(r"\s+|‹[^›]{1,40}›|\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    kind: Literal["same", "new", "gone", "rest"]
    """`rest`: words after the first MAX_WORDS, which are not compared."""
    text: str


def word_diff(before: str, after: str) -> Iterator[Piece]:
    """Yield the pieces that lead from one text to the other, in order.

    Words, marks, white space and ids of images (`‹image 29›`) are compared whole.
    """
    old, old_rest = _words(before)
    new, new_rest = _words(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for what, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if what == "equal":
            yield Piece("same", "".join(new[new_from:new_to]))
            continue
        if old_from < old_to:
            yield Piece("gone", "".join(old[old_from:old_to]))
        if new_from < new_to:
            yield Piece("new", "".join(new[new_from:new_to]))
    if old_rest or new_rest:
        yield Piece("rest", new_rest)


def _words(text: str) -> tuple[list[str], str]:
    """Return the words of a text and what follows the last one that is compared."""
    words: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        if len(words) == MAX_WORDS:
            break
        words.append(match[0])
        end = match.end()
    return words, text[end:]
