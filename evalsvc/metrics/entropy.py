"""Loss of a model without context, one that knows how often each id occurs: an upper bound of the ids' entropy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.ratio import ratio_of_sums

CONCENTRATIONS = tuple(2.0**power for power in range(25))
"""Choices of a Dirichlet prior's concentration. At the largest, counts below some thousands are as good as ignored."""

CHUNK = 1 << 20
"""Ids that are worked on at a time, in whole groups. Concentrations are fitted to the first of these parts."""


TABLE = 32
"""Cells of a table for each id in it, up to which counting in the table is faster than sorting the ids."""


@dataclass(frozen=True)
class UnigramLoss:
    """Held-out loss of a model that knows how often ids occur, and nothing of the sequence that it predicts."""

    loss: float
    """Mean of −ln p(id | the other groups), in nats per id."""
    stderr: float | None
    """Standard error of `loss` over groups of sequences."""
    sequences: int
    """Sequences with ids."""
    groups: int | None
    """Groups of these sequences; None where every sequence is a group."""
    ids: int
    """Ids that were predicted."""
    distinct: int
    """Different ids among them."""
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

    `ids` are in [0, size), `owners` says to which sequence each belongs, `places` where in its sequence it stands, and
    `groups[s]` to which group sequence s belongs, by default to one of its own. Sequences of one group (captions of one
    image) depend on each other, so none is predicted from another.

    With c the count of an id and n that of all ids in the other groups, the predictive probability is that of a
    Dirichlet prior around the uniform distribution; with places, c(place) and n(place) are those at the place, around
    the probability without it:

        p(id) = (c + a / size) / (n + a),    p(id | place) = (c(place) + b · p(id)) / (n(place) + b)

    The concentrations a and b are fitted, among `CONCENTRATIONS`, by the same leave-one-group-out loss, to the half of
    the groups that the predicted one is not in (groups alternate between the halves). Nothing of p knows the group that
    it predicts, so the loss is in expectation never below the entropy of what the ids are drawn from.

    The loss is Σ −ln p / N over ids, in nats; its error is that of this ratio over groups. To first order the
    frequencies add nothing to the error; with twenty groups it is about a tenth too small.

    Source: D. J. C. MacKay and L. C. Bauman Peto, "A hierarchical Dirichlet language model" (Natural Language
    Engineering 1, 1995); leaving out as in M. Stone, "Cross-validatory choice and assessment of statistical
    predictions" (JRSS B 36, 1974).
    """
    data = _Data.of(ids, owners, places, groups)
    if data.count < 2:
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
    """Some ids, all of the groups that they are of; every array [M]."""

    ids: NDArray[np.integer]
    owners: NDArray[np.integer]
    groups: NDArray[np.integer]
    """Counted in the order of the data from 0, without gaps; groups alternate between two halves."""
    places: NDArray[np.integer] | None

    def of_half(self, half: int) -> _Part:
        return self.chosen(self.groups % 2 == half)

    def chosen(self, rows: NDArray[np.integer] | slice) -> _Part:
        places = None if self.places is None else self.places[rows]
        return _Part(self.ids[rows], self.owners[rows], self.groups[rows], places)


@dataclass(frozen=True)
class _Data(_Part):
    count: int
    """Number of groups."""

    @classmethod
    def of(
        cls,
        ids: NDArray[np.integer],
        owners: NDArray[np.integer],
        places: NDArray[np.integer] | None,
        groups: Sequence[int] | None,
    ) -> _Data:
        """Sort the ids by group."""
        if not len(ids):
            return cls(ids, owners, owners, places, 0)
        of_sequence = np.arange(int(owners[-1]) + 1) if groups is None else np.asarray(groups)
        labels = of_sequence[owners]
        if (np.diff(labels) < 0).any():
            order = np.argsort(labels, kind="stable")
            ids, owners, labels = ids[order], owners[order], labels[order]
            places = None if places is None else places[order]
        numbers = np.concatenate(([0], np.cumsum(np.diff(labels) != 0)))
        return cls(ids, owners, numbers, places, int(numbers[-1]) + 1)

    def parts(self) -> Iterator[_Part]:
        """Cut the data between groups, into parts that have `CHUNK` ids or the rest."""
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
        # 32 bits: there are 2^24 cells at most, and never so many ids in one.
        self.cells = np.zeros((2, (places or 1) * width), np.int32)
        self.at = np.zeros((2, places or 1), np.int64)

    def add(self, part: _Part) -> None:
        for half in (0, 1):
            cells, at = self._where(part.of_half(half))
            np.add.at(self.cells[half], cells, 1)
            np.add.at(self.at[half], at, 1)

    def others(self, part: _Part, halves: Sequence[int]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Count each id, and all ids where it stands, in the groups of these halves without the id's own; [M] each."""
        cells, at = self._where(part)
        own_n = _count_within(part.groups, at)
        # Where a group has one id at a place, as one image has, it has that id there once.
        own_c = own_n if own_n.max(initial=0) == 1 else _count_within(part.groups, cells)
        c = sum(self.cells[half][cells] for half in halves) - own_c
        n = sum(self.at[half][at] for half in halves) - own_n
        return c, n

    def _where(self, part: _Part) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        if not self.by_place:
            return part.ids, np.zeros(len(part.ids), np.int64)
        assert part.places is not None
        at = part.places.astype(np.int64)
        return at * self.width + part.ids, at


def _count_within(groups: NDArray[np.integer], cells: NDArray[np.integer]) -> NDArray[np.integer]:
    """Count how often the cell of each id occurs in the id's group, [M]."""
    if not len(cells):
        return np.zeros(0, np.int64)
    width = int(cells.max()) + 1
    keys = (groups - groups[0]).astype(np.int64) * width + cells
    if int(groups[-1] - groups[0] + 1) * width <= TABLE * len(keys):
        in_table: NDArray[np.integer] = np.bincount(keys)[keys]
        return in_table
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    found: NDArray[np.integer] = counts[place]
    return found


def _fit(data: _Data, levels: Sequence[_Level], half: int, size: int) -> list[float]:
    """Choose the concentration of each level by the leave-one-group-out loss within one half of the groups."""
    part = next(some for some in (part.of_half(half) for part in data.parts()) if len(some.ids))
    found = []
    p: Any = 1 / size
    for level in levels:
        c, n = level.others(part, (half,))
        # One group alone has no others to be predicted from: half a count for each id, as Krichevsky and Trofimov.
        best = _best(c, n, p) if n.any() else size / 2
        p = (c + best * p) / (n + best)
        found.append(best)
    return found


def _best(c: NDArray[np.integer], n: NDArray[np.integer], p: NDArray[np.float64] | float) -> float:
    """Return the concentration of the smallest loss of ids that occur c of n times, around the probabilities p."""
    losses = [float(np.mean(np.log(n + a) - np.log(c + a * p))) for a in CONCENTRATIONS]
    return CONCENTRATIONS[int(np.argmin(losses))]
