"""Frequencies of ids: the loss of a model that knows nothing else, a bound of the entropy, and repeated n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.ratio import ratio_of_sums

CONCENTRATIONS = tuple(2.0**power for power in range(25))
"""Candidate concentrations of the Dirichlet prior. The largest makes counts below some thousands negligible."""

CHUNK = 1 << 20
"""Number of ids that are processed together, in whole groups. Concentrations are fitted to the first chunk."""


TABLE = 32
"""Number of table cells per id up to which counting in a table is faster than sorting the ids."""


@dataclass(frozen=True)
class UnigramLoss:
    """Held-out loss of a model that knows the frequencies of ids and nothing of the predicted sequence."""

    loss: float
    """Mean of −ln p(id | the other groups), in nats per id."""
    stderr: float | None
    sequences: int
    groups: int | None
    """Number of groups of these sequences; None where every sequence is a group."""
    ids: int
    distinct: int
    unseen: float
    """Share of the ids that occur in no other group; above a few percent, the entropy is well below `loss`."""


def unigram_loss(
    ids: NDArray[np.integer],  # [N]
    owners: NDArray[np.integer],  # [N], ascending
    size: int,
    places: NDArray[np.integer] | None = None,  # [N]
    groups: Sequence[int] | None = None,  # [S]
) -> UnigramLoss | None:
    """Compute the loss of ids under their frequencies in the other groups; None with fewer than two groups.

    `ids` are in [0, size), `owners` has the sequence of each id, `places` the position of each id in its sequence, and
    `groups[s]` the group of sequence s, by default a group per sequence. Sequences of one group (captions of one image)
    depend on each other, so none is predicted from another.

    With c the count of an id and n that of all ids in the other groups, the predictive probability is that of a
    Dirichlet prior around the uniform distribution; with places, c(place) and n(place) are the counts at the place,
    around the probability without the place:

        p(id) = (c + a / size) / (n + a),    p(id | place) = (c(place) + b · p(id)) / (n(place) + b)

    The concentrations a and b are fitted, among `CONCENTRATIONS`, by the same leave-one-group-out loss, to the half of
    the groups that does not hold the predicted group (groups alternate between the halves). No part of p depends on the
    predicted group, so the loss is in expectation never below the entropy of the ids' distribution.

    The loss is Σ −ln p / N over ids, in nats; its error is that of this ratio over groups. To first order the
    frequencies add nothing to the error; with twenty groups the error is about a tenth too small.

    Source: D. J. C. MacKay and L. C. Bauman Peto, "A hierarchical Dirichlet language model" (Natural Language
    Engineering 1, 1995); leaving out as in M. Stone, "Cross-validatory choice and assessment of statistical
    predictions" (JRSS B 36, 1974).
    """
    data = _Part.of(ids, owners, places, groups) if len(ids) else None
    if data is None or not data.groups[-1]:
        return None
    width = int(ids.max()) + 1
    levels = [_Level(width, None)]
    if data.places is not None:
        levels.append(_Level(width, int(data.places.max()) + 1))
    for part in data.parts():
        for level in levels:
            level.add(part)
    fitted = [_fit(data, levels, half, size) for half in (0, 1)]
    sums = np.zeros(int(owners.max()) + 1)
    unseen = 0
    for part in data.parts():
        for half in (0, 1):
            tested = part.of_half(half)
            p: Any = 1 / size
            for level, concentration in zip(levels, fitted[1 - half], strict=True):
                c, n = level.others(tested, (0, 1))
                unseen += int((c == 0).sum()) if level is levels[0] else 0
                p = (c + concentration * p) / (n + concentration)
            np.add.at(sums, tested.owners, -np.log(p))
    counts = np.bincount(owners)
    ratio = ratio_of_sums(sums.tolist(), counts.tolist(), None if groups is None else groups[: len(sums)])
    assert ratio is not None, "there are ids"
    distinct = int(np.count_nonzero(levels[0].cells.sum(0)))
    return UnigramLoss(ratio.value, ratio.stderr, ratio.n, ratio.groups, len(ids), distinct, unseen / len(ids))


@dataclass(frozen=True)
class _Part:
    """Ids of whole groups, which are numbered; every array is [M]."""

    ids: NDArray[np.integer]
    owners: NDArray[np.integer]
    groups: NDArray[np.integer]
    """Groups numbered from 0 in the order of the data, without gaps; groups alternate between two halves."""
    places: NDArray[np.integer] | None

    @classmethod
    def of(
        cls,
        ids: NDArray[np.integer],
        owners: NDArray[np.integer],
        places: NDArray[np.integer] | None,
        groups: Sequence[int] | None,
    ) -> _Part:
        """Sort the ids, of which there is at least one, by group."""
        labels = owners if groups is None else np.asarray(groups)[owners]
        data = cls(ids, owners, labels, places)
        if (np.diff(labels) < 0).any():
            data = data.chosen(np.argsort(labels, kind="stable"))
        return replace(data, groups=np.concatenate(([0], np.cumsum(np.diff(data.groups) != 0))))

    def of_half(self, half: int) -> _Part:
        return self.chosen(self.groups % 2 == half)

    def chosen(self, rows: NDArray[np.integer] | slice) -> _Part:
        places = None if self.places is None else self.places[rows]
        return _Part(self.ids[rows], self.owners[rows], self.groups[rows], places)

    def parts(self) -> Iterator[_Part]:
        """Yield the data in parts of about `CHUNK` ids, cut between groups."""
        start = 0
        while start < len(self.ids):
            last = self.groups[min(start + CHUNK, len(self.ids)) - 1]
            stop = int(np.searchsorted(self.groups, last, side="right"))
            yield self.chosen(slice(start, stop))
            start = stop


class _Level:
    """Counts of ids, or of ids at places, in each half of the groups."""

    def __init__(self, width: int, places: int | None) -> None:
        self.width = width
        self.by_place = places is not None
        # 32 bits suffice: there are at most 2^24 cells, and no cell counts 2^31 ids.
        self.cells = np.zeros((2, (places or 1) * width), np.int32)
        self.at = np.zeros((2, places or 1), np.int64)

    def add(self, part: _Part) -> None:
        for half in (0, 1):
            cells, at = self._where(part.of_half(half))
            np.add.at(self.cells[half], cells, 1)
            np.add.at(self.at[half], at, 1)

    def others(self, part: _Part, halves: Sequence[int]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Count each id, and all ids at its place, in the groups of these halves except the id's group; [M] each."""
        cells, at = self._where(part)
        in_group_n = _count_within(part.groups, at)
        # A group that has one id at a place, as one image has, has that id there once.
        in_group_c = in_group_n if in_group_n.max(initial=0) == 1 else _count_within(part.groups, cells)
        c = sum(self.cells[half][cells] for half in halves) - in_group_c
        n = sum(self.at[half][at] for half in halves) - in_group_n
        return c, n

    def _where(self, part: _Part) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        if not self.by_place:
            return part.ids, np.zeros(len(part.ids), np.int64)
        assert part.places is not None
        at = part.places.astype(np.int64)
        return at * self.width + part.ids, at


def _count_within(groups: NDArray[np.integer], cells: NDArray[np.integer]) -> NDArray[np.integer]:
    if not len(cells):
        return np.zeros(0, np.int64)
    width = int(cells.max()) + 1
    keys = (groups - groups[0]).astype(np.int64) * width + cells
    if int(groups[-1] - groups[0] + 1) * width <= TABLE * len(keys):
        in_table: NDArray[np.integer] = np.bincount(keys)[keys]
        return in_table
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sorted_counts: NDArray[np.integer] = counts[place]
    return sorted_counts


def _fit(data: _Part, levels: Sequence[_Level], half: int, size: int) -> list[float]:
    part = next(candidate for candidate in (part.of_half(half) for part in data.parts()) if len(candidate.ids))
    chosen = []
    p: Any = 1 / size
    for level in levels:
        c, n = level.others(part, (half,))
        # A single group cannot be predicted from others: use half a count for each id, as Krichevsky and Trofimov.
        best = size / 2
        if n.any():
            best = min(CONCENTRATIONS, key=lambda a: float(np.mean(np.log(n + a) - np.log(c + a * p))))
        p = (c + best * p) / (n + best)
        chosen.append(best)
    return chosen


def seq_rep(ids: Sequence[int], n: int) -> float | None:
    """Compute seq-rep-n: the share of a continuation's n-grams that repeat an earlier one, 1 − |unique| / |all|.

    None for a continuation shorter than n.

    Source: Welleck, Kulikov, Roller, Dinan, Cho, Weston, "Neural Text Generation with Unlikelihood Training" (ICLR
    2020, arXiv 1908.04319), section 6, where n is 4.
    """
    distinct = distinct_n([ids], n)
    return None if distinct is None else 1 - distinct


def distinct_n(texts: Iterable[Sequence[int]], n: int) -> float | None:
    """Compute distinct-n: different n-grams of all texts together over all n-grams; 1 where no n-gram repeats.

    The value falls with the number of ids, so only texts of about equal lengths are comparable. None where no text has
    an n-gram.

    Source: Li, Galley, Brockett, Gao, Dolan, "A Diversity-Promoting Objective Function for Neural Conversation Models"
    (NAACL 2016, arXiv 1510.03055), who divide by the number of words for n = 2 too.
    """
    grams = [tuple(ids[start : start + n]) for ids in texts for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
