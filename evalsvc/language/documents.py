"""Which documents of a benchmark are used: all, the first ones, named ones, or a sample that is stratified.

A sample is the beginning of a fixed order of all documents, so a larger one holds every smaller one, and every
checkpoint is asked the same. Nothing of a model is needed to draw it.
"""

from __future__ import annotations

import hashlib
import statistics
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

DESIGN = "stratified/1"
"""In the protocol: how a sample is drawn. Another version draws other documents. It is what the draw is seeded by."""

ERROR = "finite population/1"
"""In the protocol of a sample: how its standard error is computed. n documents of N have the factor √(1 − n / N)."""

LENGTHS = 4
"""Classes of the questions' lengths, of about as many documents each."""


@dataclass(frozen=True)
class Selection:
    """What of a benchmark is used; of the three at most one is given, and none is all of it."""

    limit: int | None = None
    """The first so many documents."""
    samples: tuple[int, ...] | None = None
    """These documents, counted from 0."""
    sample: int | None = None
    """So many documents, drawn by strata."""

    def __bool__(self) -> bool:
        return self != Selection()


Stratum = tuple[int | None, int]
"""Place of the right answer among the options, None where there are none; and class of the question's length."""


def strata(right: Sequence[int | None], lengths: Sequence[int]) -> list[Stratum]:
    """The stratum of each document, from the place of its right answer and the length of its question in characters.

    Both move what a model that has forgotten its language gets right: it takes the first option, or the shortest.
    """
    bounds = statistics.quantiles(lengths, n=LENGTHS) if len(lengths) > 1 else []
    return [(place, bisect_left(bounds, length)) for place, length in zip(right, lengths, strict=True)]


def drawing_order(of: Sequence[Hashable], seed: str) -> list[int]:
    """All documents, by index, in an order whose every beginning is a sample; `of` has the stratum of each.

    The j-th of a stratum's N_h documents, put into a random order, has the place (j + ½) / N_h on a circle, and the
    order goes once around the circle from a random place on. So

    - every n-th place is of stratum h with probability N_h / N, and each document is among the first n with
      probability n / N exactly: the plain mean over a sample is unbiased for the mean over all documents;
    - n places in a row have n N_h / N documents of stratum h but for a few, so the sample is allocated in proportion.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition: proportional allocation to strata (chapter 5) by a
    systematic sample with a random start (chapter 8), here of interleaved strata, so that samples are nested.
    """
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(of)), key=lambda index: _random(seed, index)):
        members.setdefault(of[index], []).append(index)
    circle = sorted(
        ((2 * j + 1) / (2 * len(indices)), index) for indices in members.values() for j, index in enumerate(indices)
    )
    start = _random(seed, "start") % max(len(circle), 1)
    return [index for _, index in circle[start:] + circle[:start]]


def _random(seed: str, what: object) -> int:
    """The same on every machine and with every version of Python, whose own generator promises neither."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest())
