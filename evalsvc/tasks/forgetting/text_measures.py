"""What the forgetting task measures of a text that two models read: metrics, and whether the losses differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.forgetting.pairs import Pairs
from evalsvc.tasks.forgetting.rows import NATS, Parts, Row, corrected, loss_row, parts_of
from evalsvc.tasks.forgetting.shards import TextShard
from evalsvc.tasks.forgetting.text_comparison import ComparedText, Comparison

TEXT = "text"
"""What rows call it."""

GROUP = "text_group"
"""The key of an item that says which texts belong together: the index of the first of them."""


@dataclass(frozen=True)
class TextMeasures:
    metrics: list[MetricValue]
    items: list[dict[str, object]]
    """The numbers of each text."""
    notes: Mapping[str, object]
    rows: list[Row]
    """The losses over all ids and within text, against the base's."""
    parts: list[Parts]
    """Where the loss comes from; empty where there is nothing but text."""


def measure_text(
    task: str, icl_positions: Sequence[int], shards: Sequence[TextShard], outputs: Sequence[Comparison]
) -> TextMeasures:
    """Of all shards of the text, in their order; `task` is the first half of the metrics' names."""
    texts = [text for output in outputs for text in output.texts]
    groups = None if shards[0].groups is None else [group for shard in shards for group in shard.groups or ()]
    numbers = [_numbers(text, None if groups is None else groups[index]) for index, text in enumerate(texts)]
    notes: dict[str, object] = {
        "texts": len(texts),
        "texts_cut": sum(output.cut for output in outputs),
        "tokens": sum(text.tokens for text in texts),
    }
    if all(text.late is None for text in texts):
        notes["icl_loss"] = f"none of the texts has {icl_positions[1]} tokens"
    there = [index for index, text in enumerate(texts) if text.tokens]
    sums, weights = [texts[index].sums for index in there], [texts[index].tokens for index in there]
    common = weights, there, None if groups is None else [groups[index] for index in there]
    everything = Pairs([one.base_nll for one in sums], [one.nll for one in sums], *common)
    within = Pairs([one.base_within for one in sums], [one.within for one in sums], *common)
    rows, parts = [loss_row(TEXT, "loss", "all", NATS, everything)], []
    if shards[0].within:
        rows.append(loss_row(TEXT, "loss", "text", NATS, within))
        mass = sum(text.sums.image_mass for text in texts) / sum(weights)
        parts = [parts_of(TEXT, NATS, everything, within, (None, mass))]
    items: list[dict[str, object]] = [{"benchmark": task, "index": index, **row} for index, row in enumerate(numbers)]
    metrics = _metrics(task, icl_positions, shards[0], numbers)
    return TextMeasures(metrics, items, notes, corrected(rows), parts)


def _numbers(text: ComparedText, group: int | None) -> dict[str, float]:
    """Return the numbers of a text that metrics are made of, by the keys of its item."""
    row: dict[str, float] = {}
    if text.tokens:
        sums = text.sums
        row = {name: number for name, number in vars(sums).items() if not name.startswith("base_")}
        row |= {"nll_change": sums.nll - sums.base_nll, "within_change": sums.within - sums.base_within}
        row["tokens"] = text.tokens
    if text.late is not None:
        own, base = text.late
        row |= {"icl_loss": own, "icl_loss_change": own - base}
    return row if group is None else row | {GROUP: group}


def _metrics(
    task: str, icl_positions: Sequence[int], shard: TextShard, rows: Sequence[Mapping[str, float]]
) -> list[MetricValue]:
    """Every metric that has texts to rest on; those within text where there is anything else."""
    own, ids = shard.protocol, shard.ids
    compared = {**own, **shard.base.protocol()}
    positions = {"positions": list(icl_positions)}
    wanted: dict[str, _Wanted] = {
        "loss": _Wanted(("nll", "tokens"), own, baseline=math.log(ids.all)),
        "loss_within": _Wanted(("within", "tokens"), own, baseline=math.log(ids.text)),
        "loss_change": _Wanted(("nll_change", "tokens"), compared),
        "loss_within_change": _Wanted(("within_change", "tokens"), compared),
        "kl": _Wanted(("kl", "tokens"), compared),
        "kl_within": _Wanted(("kl_within", "tokens"), compared),
        "top1_agreement": _Wanted(("top1", "tokens"), compared, "fraction", "higher"),
        "image_mass": _Wanted(("image_mass", "tokens"), own, "probability", "none", ids.image / ids.all),
        "icl_loss": _Wanted(("icl_loss",), {**own, **positions}),
        "icl_loss_change": _Wanted(("icl_loss_change",), {**compared, **positions}),
    }
    if not shard.within:
        wanted = {name: one for name, one in wanted.items() if "within" not in name}
    if not ids.image:
        del wanted["image_mass"]
    values = (one.value(f"{task}/{name}", rows) for name, one in wanted.items())
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class _Wanted:
    """A metric of the text."""

    items: tuple[str, ...]
    """As `MetricValue.items`."""
    protocol: Mapping[str, object]
    unit: str = NATS
    direction: Direction = "lower"
    baseline: float | None = None

    def value(self, name: str, rows: Sequence[Mapping[str, float]]) -> MetricValue | None:
        key, *weight = self.items
        some = [row for row in rows if key in row]
        weights = [row[weight[0]] if weight else 1 for row in some]
        grouped_by = GROUP if some and GROUP in some[0] else None
        groups = None if grouped_by is None else [row[GROUP] for row in some]
        ratio = ratio_of_sums([row[key] for row in some], weights, groups)
        if ratio is None:
            return None
        if self.unit != "fraction" and ratio.stderr is not None and len({row[key] for row in some}) == 1 and not weight:
            ratio = replace(ratio, stderr=0.0)  # differences that are all 0 are no share of anything
        protocol = Protocol(self.protocol)
        return ratio.as_metric(name, self.unit, self.direction, protocol, self.baseline, self.items, grouped_by)
