import random
from collections.abc import Sequence

import pytest

from evalsvc.store.results import common_prefix, edit_distance


def slow(one: Sequence[int], other: Sequence[int]) -> int:
    """The definition: the whole table of distances between prefixes."""
    row = list(range(len(other) + 1))
    for place, token in enumerate(one, start=1):
        before, row = row, [place]
        for column, wanted in enumerate(other, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (token != wanted)))
    return row[-1]


@pytest.mark.parametrize("ids", [2, 3, 60_000])
def test_equals_the_table(ids: int) -> None:
    """Lengths about those of a machine word and far above it, where the bits of several words must carry."""
    draw = random.Random(ids)
    for length in (0, 1, 2, 3, 31, 63, 64, 65, 130):
        for other_length in (0, 1, length, length + 3, 70):
            one, other = ([draw.randrange(ids) for _ in range(some)] for some in (length, other_length))
            assert edit_distance(one, other) == edit_distance(other, one) == slow(one, other)


def test_of_what_differs_by_a_few_edits() -> None:
    """Random sequences have nothing in common; completions of neighbouring checkpoints do."""
    draw = random.Random(1)
    for _ in range(60):
        one = [draw.randrange(500) for _ in range(draw.randrange(1, 100))]
        other = list(one)
        for _ in range(draw.randrange(6)):
            place = draw.randrange(len(other) + 1)
            other[place : place + draw.randrange(2)] = [draw.randrange(500)] * draw.randrange(2)
        assert edit_distance(one, other) == slow(one, other) <= 6


def test_by_hand() -> None:
    kitten, sitting = ([ord(letter) for letter in word] for word in ("kitten", "sitting"))
    assert edit_distance(kitten, sitting) == 3
    assert edit_distance(kitten, kitten) == 0
    assert edit_distance([], kitten) == 6


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 5, 3], [1, 2, 3], 1), ([4], [5], 0)],
)
def test_common_prefix(one: list[int], other: list[int], expected: int) -> None:
    assert common_prefix(one, other) == common_prefix(other, one) == expected
