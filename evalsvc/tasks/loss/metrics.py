"""Metrics and items of the loss task, from sums per sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evalsvc.errors import InternalError
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.spec.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.loss.unigrams import TOLERANCE
from evalsvc.tasks.sequence_groups import GENERAL_GROUP, GROUP

NATS = "nats/token"

TYPES = ("text", "image", "special")


def loss_metrics(
    task: str,
    sums: Mapping[str, Sequence[float]],
    ids: Mapping[str, int],
    protocol: Protocol,
    groups: Sequence[int] | None = None,
) -> list[MetricValue]:
    """Return every metric with tokens behind it; standard errors are over sequences, or over `groups` of sequences. A
    loss is Σ nll / Σ tokens; a perplexity is e to the loss, with the same items."""
    losses = {kind: (f"nll_{kind}", f"n_{kind}", ids["all"]) for kind in (*TYPES, "total")}
    for kind in ("text", "image"):
        losses[f"{kind}_within"] = (f"within_{kind}", f"n_{kind}", ids.get(kind, 0))
    metrics = []
    for name, (total, count, choices) in losses.items():
        if loss := ratio_of_sums(sums[total], sums[count], groups):
            items = total, count
            metrics.append(_value(f"{task}/{name}", loss, NATS, "lower", protocol, math.log(choices), items))
            exp, baseline = perplexity(loss), float(choices)
            metrics.append(_value(f"{task}/{name}_perplexity", exp, "perplexity", "lower", protocol, baseline, items))
    _require_weighted(task, {metric.name: metric.value for metric in metrics}, sums)
    mass = ratio_of_sums(sums["image_mass"], sums["n_text"], groups)
    if mass is not None and "image" in ids:
        baseline, items = ids["image"] / ids["all"], ("image_mass", "n_text")
        metrics.append(_value(f"{task}/image_mass", mass, "probability", "none", protocol, baseline, items))
    return metrics


def with_totals(sums: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:

    def total(name: str) -> list[float]:
        parts = (sums[f"{name}_{kind}"] for kind in TYPES)
        return [sum(row) for row in zip(*parts, strict=True)]

    return {**sums, "nll_total": total("nll"), "n_total": total("n")}


def _value(
    name: str,
    ratio: Ratio,
    unit: str,
    direction: Direction,
    protocol: Protocol,
    baseline: float | None,
    items: tuple[str, ...] = (),
    group: str = GROUP,
) -> MetricValue:
    by = group if items and ratio.groups is not None else None
    return ratio.as_metric(name, unit, direction, protocol, baseline, items, by)


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
        name = f"{task}/general_text"
        metrics.append(
            _value(f"{name}{suffix}", loss, NATS, "lower", general_protocol, math.log(choices), keys, GENERAL_GROUP)
        )
        if caption is not None:
            metrics.append(_value(f"{name}_gap{suffix}", gap(loss, caption), NATS, "none", between, None))
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
    items = _data_items(data)
    for index, group in enumerate(groups[0] or ()):
        items[index][GROUP] = group
    for index, count in enumerate(general["n_text"] if general else ()):
        if index == len(items):
            items.append({"index": index})
        if count and general:
            numbers = {f"{name}_general_text": general[f"{name}_text"][index] for name in ("nll", "within")}
            items[index] |= {"n_general_text": int(count), **numbers}
            if groups[1] is not None:
                items[index][GENERAL_GROUP] = groups[1][index]
    return items


def _data_items(sums: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    items = []
    for index in range(len(sums["n_text"])):
        item: dict[str, float] = {"index": index}
        for kind in (*TYPES, "total"):
            if count := int(sums[f"n_{kind}"][index]):
                item |= {f"n_{kind}": count, f"nll_{kind}": sums[f"nll_{kind}"][index]}
                if kind in ("text", "image"):
                    item[f"within_{kind}"] = sums[f"within_{kind}"][index]
                if kind == "text":
                    item["image_mass"] = sums["image_mass"][index]
        items.append(item)
    return items
