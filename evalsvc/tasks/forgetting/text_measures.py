"""Metrics of a text that two models read, and tests of the difference of their losses."""

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
"""Name of the text in rows."""

GROUP = "text_group"
"""Key of an item that holds the group of a text: the index of the group's first text."""


@dataclass(frozen=True)
class TextMeasures:
    metrics: list[MetricValue]
    items: list[dict[str, object]]
    """Numbers of each text."""
    notes: Mapping[str, object]
    rows: list[Row]
    """Losses over all ids and within text, compared with the base's."""
    parts: list[Parts]
    """Decomposition of the loss change; empty if the table has text only."""


def measure_text(
    task: str, icl_positions: Sequence[int], shards: Sequence[TextShard], outputs: Sequence[Comparison]
) -> TextMeasures:
    """Measure all shards of the text, in order; `task` is the first half of the metrics' names."""
    texts = [text for output in outputs for text in output.texts]
    groups = None if shards[0].groups is None else [group for shard in shards for group in shard.groups or ()]
    numbers = [_numbers(text, None if groups is None else groups[index]) for index, text in enumerate(texts)]
    notes: dict[str, object] = {
        "texts": len(texts),
        "texts_cut": sum(output.cut for output in outputs),
        "tokens": sum(text.tokens for text in texts),
    }
    if all(text.late is None for text in texts):
        notes["icl_loss"] = "no text has predicted tokens at both places {} and {}".format(*icl_positions)
    measured = [index for index, text in enumerate(texts) if text.tokens]
    sums, weights = [texts[index].sums for index in measured], [texts[index].tokens for index in measured]
    common = weights, measured, None if groups is None else [groups[index] for index in measured]
    everything = Pairs([text.base_nll for text in sums], [text.nll for text in sums], *common)
    within = Pairs([text.base_within for text in sums], [text.within for text in sums], *common)
    rows, parts = [loss_row(TEXT, "loss", "all", NATS, everything)], []
    if shards[0].within:
        rows.append(loss_row(TEXT, "loss", "text", NATS, within))
        mass = sum(text.sums.image_mass for text in texts) / sum(weights)
        parts = [parts_of(TEXT, NATS, everything, within, (None, mass))]
    items: list[dict[str, object]] = [{"benchmark": task, "index": index, **row} for index, row in enumerate(numbers)]
    metrics = _metrics(task, icl_positions, shards[0], numbers)
    return TextMeasures(metrics, items, notes, corrected(rows), parts)


def _numbers(text: ComparedText, group: int | None) -> dict[str, float]:
    """Return the numbers of a text behind the metrics, by the keys of its item."""
    row: dict[str, float] = {}
    if text.tokens:
        sums = text.sums
        row = {name: number for name, number in vars(sums).items() if not name.startswith("base_")}
        row |= {"nll_change": sums.nll - sums.base_nll, "within_change": sums.within - sums.base_within}
        row["tokens"] = text.tokens
    if text.late is not None:
        checkpoint, base = text.late
        row |= {"icl_loss": checkpoint, "icl_loss_change": checkpoint - base}
    return row if group is None else row | {GROUP: group}


def _metrics(
    task: str, icl_positions: Sequence[int], shard: TextShard, rows: Sequence[Mapping[str, float]]
) -> list[MetricValue]:
    """Return every metric with texts behind it; metrics within text only if the table has other ids."""
    checkpoint, ids = shard.protocol, shard.ids
    compared = {**checkpoint, **shard.base.protocol()}
    positions = {"positions": list(icl_positions)}
    wanted: dict[str, _Wanted] = {
        "loss": _Wanted(("nll", "tokens"), checkpoint, baseline=math.log(ids.all)),
        "loss_within": _Wanted(("within", "tokens"), checkpoint, baseline=math.log(ids.text)),
        "loss_change": _Wanted(("nll_change", "tokens"), compared),
        "loss_within_change": _Wanted(("within_change", "tokens"), compared),
        "kl": _Wanted(("kl", "tokens"), compared),
        "kl_within": _Wanted(("kl_within", "tokens"), compared),
        "top1_agreement": _Wanted(("top1", "tokens"), compared, "fraction", "higher"),
        "image_mass": _Wanted(("image_mass", "tokens"), checkpoint, "probability", "none", ids.image / ids.all),
        "icl_loss": _Wanted(("icl_loss",), {**checkpoint, **positions}),
        "icl_loss_change": _Wanted(("icl_loss_change",), {**compared, **positions}),
    }
    if not shard.within:
        wanted = {name: metric for name, metric in wanted.items() if "within" not in name}
    if not ids.image:
        del wanted["image_mass"]
    values = (metric.value(f"{task}/{name}", rows) for name, metric in wanted.items())
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class _Wanted:
    """A metric of the text."""

    items: tuple[str, ...]
    """Keys as in `MetricValue.items`."""
    protocol: Mapping[str, object]
    unit: str = NATS
    direction: Direction = "lower"
    baseline: float | None = None

    def value(self, name: str, rows: Sequence[Mapping[str, float]]) -> MetricValue | None:
        key, *weight = self.items
        present = [row for row in rows if key in row]
        weights = [row[weight[0]] if weight else 1 for row in present]
        grouped_by = GROUP if present and GROUP in present[0] else None
        groups = None if grouped_by is None else [row[GROUP] for row in present]
        ratio = ratio_of_sums([row[key] for row in present], weights, groups)
        if ratio is None:
            return None
        if (
            self.unit != "fraction"
            and ratio.stderr is not None
            and len({row[key] for row in present}) == 1
            and not weight
        ):
            ratio = replace(ratio, stderr=0.0)  # without any difference, the ratio has no share per item
        protocol = Protocol(self.protocol)
        return ratio.as_metric(name, self.unit, self.direction, protocol, self.baseline, self.items, grouped_by)
