"""Word diffs: which words of a text are new, and which are gone.

The diff is a longest common subsequence of words, from bit vectors as long as one of the texts (Hyyrö, "Bit-parallel
LCS-length computation revisited", 2004): a row of the usual table is one integer, so thousands of words take
milliseconds whatever the texts are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

MAX_WORDS = 3000
"""Maximum number of words of a text that are compared."""

_WORD = re.compile(r"\s*(?:‹[^›]{1,40}›|\w+|[^\w\s])|\s+")

Kind = Literal["same", "new", "gone"]


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    kind: Kind
    text: str
    compared: bool = True
    """Whether the part was compared; false for the words after the first MAX_WORDS."""


def word_diff(before: str, after: str) -> list[Piece]:
    """Return the pieces that lead from one text to the other, in order.

    The pieces that are `same` or `new` make up the text after; those that are `same` or `gone` make up the text before.
    Words and marks, each with the white space before it, and ids of images (`‹image 29›`) are compared whole.
    """
    old, old_rest = _words(before)
    new, new_rest = _words(after)
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    middle = _changes(old[first : len(old) - last], new[first : len(new) - last])
    words: list[tuple[Kind, str]]
    words = [*(("same", word) for word in new[:first]), *middle, *(("same", word) for word in new[len(new) - last :])]
    pieces = [Piece(kind, "".join(word for _, word in run)) for kind, run in groupby(words, key=lambda word: word[0])]
    rests: list[Piece] = [Piece("gone", old_rest, compared=False), Piece("new", new_rest, compared=False)]
    return [*pieces, *(rest for rest in rests if rest.text)]


def _words(text: str) -> tuple[list[str], str]:
    words: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        if len(words) == MAX_WORDS:
            break
        words.append(match[0])
        end = match.end()
    return words, text[end:]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (word, twin) in pairs if word != twin), min(len(one), len(other)))


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[Kind, str]]:
    """Return the words of both texts with their kinds; words that are gone come before the new ones in their place."""
    rows = list(_rows(old, new))
    changes: list[tuple[Kind, str]] = []
    i, j = len(old), len(new)
    while i and j:
        if rows[j] >> (i - 1) & 1:  # the word adds nothing to the subsequence
            changes.append(("gone", old[i - 1]))
            i -= 1
        elif rows[j - 1] >> (i - 1) & 1:  # without this new word, the old word adds nothing either: they are a pair
            changes.append(("same", new[j - 1]))
            i, j = i - 1, j - 1
        else:
            changes.append(("new", new[j - 1]))
            j -= 1
    changes += [("gone", word) for word in reversed(old[:i])]
    changes += [("new", word) for word in reversed(new[:j])]
    changes.reverse()
    return _in_order(changes)


def _rows(old: Sequence[str], new: Sequence[str]) -> Iterator[int]:
    """Yield a bit vector for no new word, for the first one, for the first two, and so on.

    Bit i is 0 if the longest common subsequence with the first i + 1 old words is longer than that with the first i.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(old):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(old)) - 1
    row = every
    yield row
    for word in new:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
        yield row


def _in_order(changes: Sequence[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """Return the changes with those that are gone before the new ones, between words that are the same."""
    ordered: list[tuple[Kind, str]] = []
    for _, run in groupby(changes, key=lambda change: change[0] == "same"):
        ordered += sorted(run, key=lambda change: change[0] == "new")
    return ordered
