"""Word diffs: exact, as short as can be, and fast whatever the texts are."""

from __future__ import annotations

import random
import time
from functools import cache

import pytest

from evalsvc.web.pages.text import MAX_WORDS, Piece, _words, word_diff

TEXTS = (
    "",
    " ",
    "a red seven",
    "a red seven\n\n",
    "A  red\tseven, drawn‹image 29›‹image 30› by hand.",
    "‹never closed",
    "<script>alert(1)</script>&amp;",
    "\u202eright to left\u202c שלום عالم",
    "👩\u200d👩\u200d👧 e\u0301 \ud800 \x00 \x1b[31m \x85\u2028",
    "=1+1 {{ 7 * 7 }}",
    "a" * 10_000,
    " " * 10_000,
    "a b " * 2500,
    "b a c " * 2000,
)


def joined(pieces: list[Piece], *kinds: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind in kinds)


def length_of_common(old: list[str], new: list[str]) -> int:
    """Return the length of the longest common subsequence, by its definition."""

    @cache
    def length(i: int, j: int) -> int:
        if not (i and j):
            return 0
        if old[i - 1] == new[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    return length(len(old), len(new))


def some_text(own: random.Random) -> str:
    marks = ["a", "b", "c", "seven", " ", "  ", "\n", ",", "‹image 29›", "‹", "é", "🐈"]
    return "".join(own.choices(marks, k=own.randrange(24)))


@pytest.mark.parametrize("before", TEXTS)
@pytest.mark.parametrize("after", TEXTS)
def test_pieces_make_up_both_texts(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert joined(pieces, "same", "gone") == before
    assert joined(pieces, "same", "new") == after
    assert all(piece.text for piece in pieces)


def test_no_shorter_diff_exists() -> None:
    """As many words are the same as in the longest common subsequence by its definition."""
    own = random.Random(0)
    for _ in range(400):
        before, after = some_text(own), some_text(own)
        pieces = word_diff(before, after)
        assert joined(pieces, "same", "gone") == before
        assert joined(pieces, "same", "new") == after
        old, new = _words(before)[0], _words(after)[0]
        same = sum(len(_words(piece.text)[0]) for piece in pieces if piece.kind == "same")
        assert same == length_of_common(old, new), (before, after)


def test_what_is_gone_comes_before_what_is_new() -> None:
    assert word_diff("a red seven by hand", "a blue eight by hand") == [
        Piece("same", "a"),
        Piece("gone", " red seven"),
        Piece("new", " blue eight"),
        Piece("same", " by hand"),
    ]


def test_an_image_id_is_one_word() -> None:
    assert word_diff("‹image 29›", "‹image 30›") == [Piece("gone", "‹image 29›"), Piece("new", "‹image 30›")]


def test_words_after_the_last_compared_one_are_marked() -> None:
    text = " a" * (MAX_WORDS + 2)
    assert word_diff(text, text) == [
        Piece("same", " a" * MAX_WORDS),
        Piece("gone", " a a", compared=False),
        Piece("new", " a a", compared=False),
    ]


def test_hostile_texts_take_no_longer() -> None:
    """The comparison of the standard library takes minutes for some of these."""
    own = random.Random(0)
    pairs = [
        ("a b " * MAX_WORDS, "b a c " * MAX_WORDS),
        (" ".join(own.choices("ab", k=MAX_WORDS)), " ".join(own.choices("ab", k=MAX_WORDS))),
        ("‹" * 100_000, " " * 100_000 + "‹"),
        ("a" * 1_000_000, "\n" * 1_000_000),
    ]
    for before, after in pairs:
        start = time.process_time()
        word_diff(before, after)
        assert time.process_time() - start < 1.0
