"""The edit distance of two sequences of ids."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(before: Sequence[int], after: Sequence[int]) -> int:
    """Return the number of leading ids that both sequences share."""
    shorter = min(len(before), len(after))
    return next((position for position in range(shorter) if before[position] != after[position]), shorter)


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """Return the Levenshtein distance: the fewest ids to insert, delete or replace to turn `before` into `after`.

    Two integers encode a column of the table of distances: their bits say where the column rises and where it falls.
    Each id of `after` takes a dozen operations on these integers, however long `before` is.

    Source: Hyyrö, "Explaining and Extending the Bit-parallel Approximate String Matching Algorithm of Myers" (2001),
    figure 3.
    """
    positions: dict[int, int] = {}
    for position, token in enumerate(before):
        positions[token] = positions.get(token, 0) | 1 << position
    used = (1 << len(before)) - 1
    rises, falls = used, 0
    for token in after:
        matches = positions.get(token, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        grows, shrinks = (falls | ~(diagonal | rises)) << 1 | 1, (rises & diagonal) << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & used, grows & diagonal & used
    return len(after) + rises.bit_count() - falls.bit_count()
