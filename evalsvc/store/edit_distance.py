"""How far apart two sequences of ids are."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The Levenshtein distance: how many ids must be put in, taken out or replaced to make one of the other.

    A column of the table of distances is two whole numbers, whose bits say where it rises and where it falls: an id of
    `other` takes a dozen operations on them, however long `one` is. Bits above those of `one` mean nothing.

    Source: Hyyrö, "Explaining and Extending the Bit-parallel Approximate String Matching Algorithm of Myers" (2001),
    figure 3.
    """
    places: dict[int, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    used = (1 << len(one)) - 1
    rises, falls = used, 0
    for token in other:
        matches = places.get(token, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        grows, shrinks = (falls | ~(diagonal | rises)) << 1 | 1, (rises & diagonal) << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & used, grows & diagonal & used
    return len(other) + rises.bit_count() - falls.bit_count()
