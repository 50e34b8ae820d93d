"""Metrics and items of the loss task, from sums per sequence; and the losses of a model without context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InternalError
from evalsvc.files.arrays import Array
from evalsvc.metrics.entropy import UnigramLoss, unigram_loss
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.sequence_groups import GENERAL_GROUP, GROUP

NATS = "nats/token"

TOLERANCE = 1e-9
"""Relative tolerance of sums of the same losses in another order."""

TYPES = ("text", "image", "special")


def choices_of(kind: str, ids: Mapping[str, int]) -> int:
    """Return the number of ids that the softmax of a target of this type is over."""
    return ids.get("image_head", ids["all"]) if kind == "image" else ids["all"]


def loss_metrics(
    task: str,
    sums: Mapping[str, Sequence[float]],
    ids: Mapping[str, int],
    protocol: Protocol,
    groups: Sequence[int] | None = None,
) -> list[MetricValue]:
    """Return every metric with tokens behind it; standard errors are over sequences, or over `groups` of sequences. A
    loss is Σ nll / Σ tokens; a perplexity is e to the loss, with the same items."""
    losses: dict[str, tuple[str, str, float]] = {
        kind: (f"nll_{kind}", f"n_{kind}", choices_of(kind, ids)) for kind in (*TYPES, "total")
    }
    if "image_head" in ids and any(sums["n_total"]):
        logs = math.fsum(sum(sums[f"n_{kind}"]) * math.log(choices_of(kind, ids)) for kind in TYPES)
        losses["total"] = "nll_total", "n_total", math.exp(logs / sum(sums["n_total"]))
    for kind in ("text", "image"):
        losses[f"{kind}_within"] = (f"within_{kind}", f"n_{kind}", ids.get(kind, 0))
    metrics = []
    for name, (total, count, choices) in losses.items():
        if loss := ratio_of_sums(sums[total], sums[count], groups):
            keys, by = (total, count), None if loss.groups is None else GROUP
            metrics.append(loss.as_metric(f"{task}/{name}", NATS, "lower", protocol, math.log(choices), keys, by))
            exp, full_name = perplexity(loss), f"{task}/{name}_perplexity"
            metrics.append(exp.as_metric(full_name, "perplexity", "lower", protocol, float(choices), keys, by))
    _require_weighted(task, {metric.name: metric.value for metric in metrics}, sums)
    mass = ratio_of_sums(sums["image_mass"], sums["n_text"], groups) if "image_mass" in sums else None
    if mass is not None and "image" in ids:
        baseline, keys = ids["image"] / ids["all"], ("image_mass", "n_text")
        by = None if mass.groups is None else GROUP
        metrics.append(mass.as_metric(f"{task}/image_mass", "probability", "none", protocol, baseline, keys, by))
    return metrics


def with_totals(sums: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    rows = {name: zip(*(sums[f"{name}_{kind}"] for kind in TYPES), strict=True) for name in ("nll", "n")}
    return {**sums, **{f"{name}_total": list(map(sum, parts)) for name, parts in rows.items()}}


def general_text_metrics(
    task: str,
    general: Mapping[str, Sequence[float]],
    captions: Mapping[str, Sequence[float]],
    ids: Mapping[str, int],
    protocols: tuple[Protocol, Protocol],
    groups: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> list[MetricValue]:
    """Return the loss of general text, over all ids and within text ids, and its distance above the captions' loss.
    `protocols` and `groups` are those of general text and of captions."""
    general_protocol, other = protocols
    between = Protocol({**general_protocol.content, "less": other.id})
    metrics = []
    for prefix, suffix, choices in (("nll", "", ids["all"]), ("within", "_within", ids["text"])):
        keys = f"{prefix}_general_text", "n_general_text"
        loss = ratio_of_sums(general[f"{prefix}_text"], general["n_text"], groups[0])
        caption = ratio_of_sums(captions[f"{prefix}_text"], captions["n_text"], groups[1])
        if loss is None:
            continue
        name, by = f"{task}/general_text", None if loss.groups is None else GENERAL_GROUP
        metrics.append(loss.as_metric(f"{name}{suffix}", NATS, "lower", general_protocol, math.log(choices), keys, by))
        if caption is not None:
            metrics.append(gap(loss, caption).as_metric(f"{name}_gap{suffix}", NATS, "none", between))
    return metrics


def gap(general: Ratio, caption: Ratio) -> Ratio:
    """Return general text minus captions, of two independent samples; n counts both together."""
    known = general.stderr is not None and caption.stderr is not None
    stderr = math.hypot(general.stderr or 0, caption.stderr or 0) if known else None
    n, independent = general.n + caption.n, general.independent + caption.independent
    return Ratio(general.value - caption.value, stderr, n, independent if independent < n else None)


def _require_weighted(task: str, values: Mapping[str, float], sums: Mapping[str, Sequence[float]]) -> None:
    counts = {kind: math.fsum(sums[f"n_{kind}"]) for kind in TYPES}
    total = math.fsum(count * values[f"{task}/{kind}"] for kind, count in counts.items() if count)
    weighted = total / math.fsum(counts.values())
    reported = values[f"{task}/total"]
    if not math.isclose(weighted, reported, rel_tol=TOLERANCE):
        raise InternalError(f"the total loss is {reported!r}, that of its types {weighted!r}; this is a bug in evalsvc")


def loss_items(
    data: Mapping[str, Sequence[float]],
    general: Mapping[str, Sequence[float]] | None,
    groups: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> list[dict[str, float]]:
    """Return a row per sequence of the data, with the numbers of the general text of the same index. `groups` are those
    of the data and of general text; rows have theirs if any group has several sequences."""
    items = []
    for index in range(len(data["n_text"])):
        item: dict[str, float] = {"index": index}
        for kind in (*TYPES, "total"):
            if count := int(data[f"n_{kind}"][index]):
                item |= {f"n_{kind}": count, f"nll_{kind}": data[f"nll_{kind}"][index]}
                if kind in ("text", "image"):
                    item[f"within_{kind}"] = data[f"within_{kind}"][index]
                if kind == "text" and "image_mass" in data:
                    item["image_mass"] = data["image_mass"][index]
        items.append(item)
    for index, group in enumerate(groups[0] or ()):
        items[index][GROUP] = group
    for index, texts in enumerate(general["n_text"] if general else ()):
        if index == len(items):
            items.append({"index": index})
        if texts and general:
            numbers = {f"{name}_general_text": general[f"{name}_text"][index] for name in ("nll", "within")}
            items[index] |= {"n_general_text": int(texts), **numbers}
            if groups[1] is not None:
                items[index][GENERAL_GROUP] = groups[1][index]
    return items


UNIGRAMS = "held-out-dirichlet/1"
"""Version of the unigram losses, in their protocol; see `metrics.entropy.unigram_loss`."""

MAX_COUNTS = 1 << 24
"""Maximum number of (code, position) counts for a unigram loss by position: as many as 32 × 32 codes out of 16,384."""

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

    def __init__(self, *blocks: range | None) -> None:
        """Set up the targets of the type whose rows are in `blocks`, in ascending order."""
        present = [block for block in blocks if block] or [range(0)]
        self.size = sum(map(len, present))
        self._starts, self._stops = (np.array(side) for side in zip(*((b.start, b.stop) for b in present), strict=True))
        self._before = self._starts - np.cumsum([0, *map(len, present[:-1])])
        self._ids: list[NDArray[np.int32]] = []
        """Ids counted from the first row of the type."""
        self._firsts: list[int] = []
        """Position of each sequence's first target among its ids of this type."""

    def add(self, ids: Sequence[int]) -> None:
        """Add a sequence, given as rows of the table. The first id is not a target."""
        rows = np.asarray(ids, dtype=np.int32)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        inside = (blocks >= 0) & (rows < self._stops[blocks])
        first = int(inside[:1].sum())
        self._ids.append((rows - self._before[blocks]).astype(np.int32)[inside][first:])
        self._firsts.append(first)

    def pack(self) -> PackedTargets:
        ids = np.concatenate(self._ids).astype(np.min_scalar_type(max(self.size - 1, 0)))
        return PackedTargets(ids, [len(part) for part in self._ids], self._firsts)

    def add_packed(self, packed: PackedTargets) -> None:
        ends = np.cumsum(packed.lengths)[:-1]
        self._ids += [part.astype(np.int32) for part in np.split(packed.ids, ends)]
        self._firsts += packed.firsts

    def unigrams(self, by_place: bool, groups: Sequence[int] | None = None) -> Unigrams:
        """Compute the losses; with `by_place`, also the loss by position unless there are too many positions."""
        lengths, size = [len(part) for part in self._ids], self.size
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
        content = {**protocols[kind].content, "estimator": UNIGRAMS}
        for name, loss in losses.items():
            ratio = Ratio(loss.loss, loss.stderr, loss.sequences, loss.groups)
            metric_name, baseline = f"{task}/{kind}_{name}", math.log(ids[kind])
            yield ratio.as_metric(metric_name, NATS, "none", Protocol(content), baseline)


def scarce(unigrams: Mapping[str, Unigrams]) -> dict[str, str]:
    """Say for which unigram losses the data are too few to approach the entropy, by name of the metric."""
    return {
        f"{kind}_{name}": f"{loss.unseen:.0%} of the ids occur in no other sequence, or group of them: the loss is "
        "what frequencies learned from these data reach, and the entropy is well below; more data bring both together"
        for kind, losses in unigrams.items()
        for name, loss in losses.items()
        if loss.unseen > FEW_UNSEEN
    }
