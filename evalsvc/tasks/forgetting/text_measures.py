"""What the forgetting task measures of a text that two models read: metrics, and whether the losses differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.forgetting.rows import NATS, Pairs, Parts, Row, corrected, loss_row, parts_of

TEXT = "text"
"""What rows call it."""

GROUP = "text_group"
"""The key of an item that says which texts belong together: the index of the first of them."""


@dataclass(frozen=True)
class TextMeasures:
    metrics: list[MetricValue]
    items: list[dict[str, Any]]
    """The numbers of each text."""
    notes: dict[str, Any]
    rows: list[Row]
    """The losses over all ids and within text, against the base's."""
    parts: list[Parts]
    """Where the loss comes from; empty where there is nothing but text."""


def measure_text(
    task: str,
    icl_positions: Sequence[int],
    shards: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],  # `text_comparison.Comparison`, and how many texts were `cut`
) -> TextMeasures:
    """Of all shards of the text, in their order; `task` is the first half of the metrics' names."""
    counts = [count for output in outputs for count in output["counts"]]
    groups = [group for shard in shards for group in shard["groups"]] if "groups" in shards[0] else None
    late = [pair for output in outputs for pair in output["late"]]
    sums = {name: [value for output in outputs for value in output["sums"][name]] for name in outputs[0]["sums"]}
    items = [
        _item(task, index, count, {name: sums[name][index] for name in sums}, late[index])
        for index, count in enumerate(counts)
    ]
    for item, group in zip(items, groups or (), strict=False):
        item[GROUP] = group
    notes: dict[str, Any] = {
        "texts": len(items),
        "texts_cut": sum(output["cut"] for output in outputs),
        "tokens": sum(counts),
    }
    if not any("icl_loss" in item for item in items):
        notes["icl_loss"] = f"none of the texts has {icl_positions[1]} tokens"
    shard = shards[0]
    everything, within = (
        _pairs(sums, counts, base, own, groups) for base, own in (("base_nll", "nll"), ("base_within", "within"))
    )
    rows = [loss_row(TEXT, "loss", "all", NATS, everything)]
    parts = []
    if shard["within"]:
        rows.append(loss_row(TEXT, "loss", "text", NATS, within))
        mass = sum(sums["image_mass"]) / sum(counts)
        parts = [parts_of(TEXT, NATS, everything, within, (None, mass))]
    return TextMeasures(_metrics(task, icl_positions, shard, items), items, notes, corrected(rows), parts)


def _pairs(
    sums: Mapping[str, Sequence[float]], counts: Sequence[int], base: str, own: str, groups: Sequence[int] | None
) -> Pairs:
    """Return the losses of the texts that have targets."""
    there = [index for index, count in enumerate(counts) if count]
    chosen = None if groups is None else [groups[i] for i in there]
    old, new = ([sums[side][i] for i in there] for side in (base, own))
    return Pairs(old, new, [counts[i] for i in there], there, chosen)


def _item(task: str, index: int, count: int, sums: Mapping[str, float], late: Sequence[float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"benchmark": task, "index": index}
    if count:
        row |= {name: sums[name] for name in ("nll", "within", "image_mass", "kl", "kl_within", "top1")}
        row |= {f"{name}_change": sums[name] - sums[f"base_{name}"] for name in ("nll", "within")}
        row["tokens"] = count
    if late is not None:
        own, base = late
        row |= {"icl_loss": own, "icl_loss_change": own - base}
    return row


def _metrics(
    task: str, icl_positions: Sequence[int], shard: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[MetricValue]:
    """Every metric that has texts to rest on; those within text where there is anything else."""
    own = shard["protocol"]
    compared = {**own, "base": shard["base"], "base_layout": shard["base_layout"], **shard["base_rotary"]}
    positions = {"positions": list(icl_positions)}
    ids = shard["rows"]
    wanted: dict[str, _Wanted] = {
        "loss": _Wanted(("nll", "tokens"), own, baseline=math.log(ids["all"])),
        "loss_within": _Wanted(("within", "tokens"), own, baseline=math.log(ids["text"])),
        "loss_change": _Wanted(("nll_change", "tokens"), compared),
        "loss_within_change": _Wanted(("within_change", "tokens"), compared),
        "kl": _Wanted(("kl", "tokens"), compared),
        "kl_within": _Wanted(("kl_within", "tokens"), compared),
        "top1_agreement": _Wanted(("top1", "tokens"), compared, "fraction", "higher"),
        "image_mass": _Wanted(("image_mass", "tokens"), own, "probability", "none", ids["image"] / ids["all"]),
        "icl_loss": _Wanted(("icl_loss",), {**own, **positions}),
        "icl_loss_change": _Wanted(("icl_loss_change",), {**compared, **positions}),
    }
    if not shard["within"]:
        wanted = {name: one for name, one in wanted.items() if "within" not in name}
    if not ids["image"]:
        del wanted["image_mass"]
    values = (one.value(f"{task}/{name}", rows) for name, one in wanted.items())
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class _Wanted:
    """A metric of the text."""

    items: tuple[str, ...]
    """As `MetricValue.items`."""
    protocol: Mapping[str, Any]
    unit: str = NATS
    direction: Direction = "lower"
    baseline: float | None = None

    def value(self, name: str, rows: Sequence[Mapping[str, Any]]) -> MetricValue | None:
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
