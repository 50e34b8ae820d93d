"""How far apart two sequences of ids are."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The Levenshtein distance: how many ids must be put in, taken out or replaced to make one of the other.

    A column of the table of distances is kept as two whole numbers, whose bits say where it rises and where it falls;
    an id of the longer sequence takes a dozen operations on them, whatever the length of the shorter one.

    Source: Myers, "A Fast Bit-Vector Algorithm for Approximate String Matching Based on Dynamic Programming" (JACM
    46(3), 1999), for whole sequences as in Hyyrö, "Explaining and Extending the Bit-parallel Approximate String
    Matching Algorithm of Myers" (2001), figure 3.
    """
    shorter, longer = sorted((one, other), key=len)
    if not shorter:
        return len(longer)
    places: dict[int, int] = {}
    for place, token in enumerate(shorter):
        places[token] = places.get(token, 0) | 1 << place
    full, last = (1 << len(shorter)) - 1, 1 << len(shorter) - 1
    rises, falls, distance = full, 0, len(shorter)
    for token in longer:
        matches = places.get(token, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        grows, shrinks = falls | ~(diagonal | rises) & full, rises & diagonal
        distance += bool(grows & last) - bool(shrinks & last)
        grows, shrinks = (grows << 1 | 1) & full, shrinks << 1 & full
        rises, falls = shrinks | ~(diagonal | grows) & full, grows & diagonal
    return distance
