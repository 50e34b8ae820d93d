"""Standard errors of means and of shares: means of items that are 1 or 0, also where all items are alike.

Items that are all 1 have no spread, though the next item may be 0; their share has the error of Agresti and Coull.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

ADDED = 2
"""Number of ones, and of zeros, that Agresti and Coull add to the items."""


def share_stderr(hits: float, n: int) -> float | None:
    """Return the standard error of the share `hits` / `n` of independent items; None with fewer than two items.

    The error is √(p (1 − p) / (n − 1)) with p = hits / n. Where p is 0 or 1, this would be zero, and the error is √(q
    (1 − q) / (n + 4)) with q = (hits + 2) / (n + 4).

    Source: A. Agresti, B. A. Coull, The American Statistician 52 (1998) 119–126.
    """
    if n < 2:
        return None
    if 0 < hits < n:
        share = hits / n
        return math.sqrt(share * (1 - share) / (n - 1))
    more = n + 2 * ADDED
    share = (hits + ADDED) / more
    return math.sqrt(share * (1 - share) / more)


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, of all 0 or all 1 as a share's; None below two, with NaN or infinity."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    mean = math.fsum(values) / n
    if mean in (0, 1) and len(set(values)) == 1:
        return share_stderr(mean * n, n)
    squares = math.fsum((value - mean) * (value - mean) for value in values)
    return math.sqrt(n / (n - 1) * squares) / n


def group_sums(parts: Sequence[float], groups: Sequence[Hashable] | None) -> list[float]:
    """Return the sums of `parts` by group, in the order of their first items; without groups, `parts` as given."""
    if groups is None:
        return list(parts)
    sums: dict[Hashable, float] = {}
    for part, group in zip(parts, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + part
    return list(sums.values())
