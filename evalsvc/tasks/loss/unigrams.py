"""Losses to compare with: the held-out loss of a model without context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalsvc.files.arrays import Array
from evalsvc.metrics.entropy import UnigramLoss, unigram_loss
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.protocol import MetricValue, Protocol

ESTIMATOR = "held-out-dirichlet/1"
"""Version of the unigram losses, in their protocol; see `metrics.entropy.unigram_loss`."""

MAX_COUNTS = 1 << 24
"""Maximum number of (code, position) counts for a unigram loss by position: as many as 32 × 32 codes out of 16,384."""

TOLERANCE = 1e-9
"""Relative tolerance of sums of the same losses in another order."""

FEW_UNSEEN = 0.05
"""Share of ids that occur in no other sequence above which the notes say that a unigram loss is far above the entropy.
For ids that follow Zipf's law, .05 corresponds to .08 nats, .12 to .13, .37 to .55."""


Unigrams: TypeAlias = dict[str, UnigramLoss]
"""`unigram`, and `unigram_by_place` on request; empty if targets are in fewer than two groups."""


@dataclass(frozen=True)
class PackedTargets:
    """Targets as a worker sends them to the merge."""

    ids: Array[np.unsignedinteger]
    lengths: Sequence[int]
    firsts: Sequence[int]


class Targets:
    """The targets of one type, sequence by sequence."""

    def __init__(self, block: range | None) -> None:
        self.block = block or range(0)
        self._ids: list[NDArray[np.int32]] = []
        """Ids relative to the first of the block."""
        self._firsts: list[int] = []
        """Position of each sequence's first target among its ids of this type."""

    def add(self, ids: Sequence[int]) -> None:
        """Add a sequence, given as rows of the table. The first id is not a target."""
        rows = np.asarray(ids, dtype=np.int32)
        inside = (rows >= self.block.start) & (rows < self.block.stop)
        first = int(inside[:1].sum())
        self._ids.append(rows[inside][first:] - self.block.start)
        self._firsts.append(first)

    def pack(self) -> PackedTargets:
        ids = np.concatenate(self._ids).astype(np.min_scalar_type(max(len(self.block) - 1, 0)))
        return PackedTargets(ids, [len(part) for part in self._ids], self._firsts)

    def add_packed(self, packed: PackedTargets) -> None:
        ends = np.cumsum(packed.lengths)[:-1]
        self._ids += [part.astype(np.int32) for part in np.split(packed.ids, ends)]
        self._firsts += packed.firsts

    def unigrams(self, by_place: bool, groups: Sequence[int] | None = None) -> Unigrams:
        """Compute the losses; with `by_place`, also the loss by position unless there are too many positions."""
        lengths, size = [len(part) for part in self._ids], len(self.block)
        ids, owners = np.concatenate(self._ids), np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        losses = {"unigram": unigram_loss(ids, owners, size, groups=groups)}
        if by_place and len(ids):
            pairs = zip(self._firsts, lengths, strict=True)
            places = np.concatenate([np.arange(first, first + length, dtype=np.int32) for first, length in pairs])
            if (int(places.max()) + 1) * (int(ids.max()) + 1) <= MAX_COUNTS:
                losses["unigram_by_place"] = unigram_loss(ids, owners, size, places, groups)
        return {name: loss for name, loss in losses.items() if loss is not None}


def unigram_metrics(
    task: str, unigrams: Mapping[str, Unigrams], ids: Mapping[str, int], protocols: Mapping[str, Protocol]
) -> Iterator[MetricValue]:
    """Yield `<task>/text_unigram`, …: the losses of `Targets.unigrams` by type, out of `ids` by type."""
    for kind, losses in unigrams.items():
        content = {**protocols[kind].content, "estimator": ESTIMATOR}
        for name, loss in losses.items():
            ratio = Ratio(loss.loss, loss.stderr, loss.sequences, loss.groups)
            metric_name, baseline = f"{task}/{kind}_{name}", math.log(ids[kind])
            yield ratio.as_metric(metric_name, "nats/token", "none", Protocol(content), baseline)


def scarce(unigrams: Mapping[str, Unigrams]) -> dict[str, str]:
    """Say for which unigram losses the data are too few to approach the entropy, by name of the metric."""
    return {
        f"{kind}_{name}": f"{loss.unseen:.0%} of the ids occur in no other sequence, or group of them: the loss is "
        "what frequencies learned from these data reach, and the entropy is well below; more data bring both together"
        for kind, losses in unigrams.items()
        for name, loss in losses.items()
        if loss.unseen > FEW_UNSEEN
    }
