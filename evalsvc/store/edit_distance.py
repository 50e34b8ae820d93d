"""The edit distance of two sequences of ids."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of leading ids that both sequences share."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the Levenshtein distance: how many ids to insert, delete or replace to turn one sequence into the other.

    A column of the table of distances is two whole numbers, whose bits say where the column rises and where it falls.
    An id of `other` then takes a dozen operations, however long `one` is. Bits above those of `one` have no meaning.

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
