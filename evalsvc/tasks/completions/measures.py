"""Numbers of completions: how they repeat themselves, how varied they are, and what the base makes of them.

Errors are over prompts: the first item of a prompt, the greedy one, also holds what its completions of a group have in
common, under the name of the group and of the measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evalsvc.metrics.ngrams import distinct_n, seq_rep
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.completions.spec import GREEDY

SEEDED = "seeded"

GROUPS = (GREEDY, SEEDED)


@dataclass(frozen=True)
class Measure:
    unit: str
    items: tuple[str, ...]
    """As `MetricValue.items`, behind the group's name."""
    by_base: bool = False
    """The base judges, so that it is part of the protocol."""


MEASURES = {
    "seq_rep_4": Measure("fraction", ("seq_rep_4",)),
    "distinct_1": Measure("fraction", ("distinct_1",)),
    "distinct_2": Measure("fraction", ("distinct_2",)),
    "base_loss": Measure("nats/token", ("base_nll", "base_scored"), by_base=True),
    "length": Measure("tokens", ("length",)),
    "ended": Measure("fraction", ("ended",)),
}
"""Metrics are called `<task>/<group>_<measure>`. None has a better side: a text may be too varied, or too plain."""


def measure(ids: Sequence[int], end: int | None) -> dict[str, Any]:
    """Of one completion: rows of the table, the last of which may be `end`. That one is no part of an n-gram."""
    ended = end is not None and ids[-1:] == [end]
    text = ids[:-1] if ended else ids
    return {
        "seq_rep_4": seq_rep(text, 4),
        "distinct_1": distinct_n([text], 1),
        "distinct_2": distinct_n([text], 2),
        "ended": None if end is None else int(ended),
    }


def prompt_numbers(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the measures of a prompt are made of, by group: `greedy_seq_rep_4`, …; without what has no value.

    Completions of a group are averaged, and their losses added up; `distinct_n` is of all their n-grams together.
    """
    groups = {group: [item for item in items if (item["way"] == GREEDY) == (group == GREEDY)] for group in GROUPS}
    found = {f"{group}_{key}": value for group in GROUPS for key, value in _numbers(groups[group]).items()}
    return {key: value for key, value in found.items() if value is not None}


def _numbers(items: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    def mean(key: str) -> float | None:
        values = [item[key] for item in items if item[key] is not None]
        return fmean(values) if values else None

    texts = [item["ids"][: len(item["ids"]) - (item["ended"] or 0)] for item in items]
    numbers = {
        "seq_rep_4": mean("seq_rep_4"),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "length": mean("drawn"),
        "ended": mean("ended"),
    }
    if scored := sum(item.get("base_scored", 0) for item in items):
        numbers |= {"base_nll": sum(item["base_nll"] for item in items), "base_scored": scored}
    return numbers


def measure_metrics(
    task: str,
    items: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    base_ids: int,
) -> Iterator[MetricValue]:
    """Yield every measure that has a value, over prompts.

    `protocols` are the contents by group; `base` is added where the base judges, which has `base_ids` text ids.
    """
    for group, content in protocols.items():
        for name, what in MEASURES.items():
            key, *weight = keys = tuple(f"{group}_{part}" for part in what.items)
            some = [item for item in items if key in item]
            ratio = ratio_of_sums([item[key] for item in some], [item[weight[0]] if weight else 1 for item in some])
            if ratio is None:
                continue
            protocol = Protocol({**content, **base} if what.by_base else content)
            baseline = math.log(base_ids) if what.by_base else None
            yield ratio.as_metric(f"{task}/{group}_{name}", what.unit, "none", protocol, baseline, keys)


def describe(item: Mapping[str, Any]) -> str:
    """A completion's numbers in a line, for the page of the task."""
    parts = [f"{item['drawn']} ids"]
    if item["image_ids"]:
        parts.append(f"{item['image_ids']} of images")
    if item["ended"] is not None:
        parts.append("ended" if item["ended"] else "not ended")
    if item["seq_rep_4"] is not None:
        parts.append(f"seq-rep-4 {item['seq_rep_4']:.2f}, distinct-1 {item['distinct_1']:.2f}")
    if "base_scored" in item:
        parts.append(describe_loss(item["base_nll"], item["base_scored"], item["drawn"]))
    return ", ".join(parts)


def describe_loss(nll: float, scored: int, drawn: int) -> str:
    """The base's loss on a completion of `drawn` ids, of which it was given `scored`."""
    if not scored:
        return "nothing that the base can judge"
    of = "" if scored == drawn else f" on the first {scored} ids"
    return f"the base's loss {nll / scored:.2f} nats/token{of}"
