"""Numbers of completions: how they repeat themselves, how varied they are, and what the base makes of them.

Errors are over prompts: the first item of a prompt, the greedy one, also holds what its completions of a group have in
common, under the name of the group and of the measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from evalsvc.metrics.ngrams import distinct_n, seq_rep
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.completions.shards import Item
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


class Variety(NamedTuple):
    """How one completion repeats itself, and whether it ended."""

    seq_rep_4: float | None
    distinct_1: float | None
    distinct_2: float | None
    ended: int | None


def measure(ids: Sequence[int], end: int | None) -> Variety:
    """Measure one completion: rows of the table, the last of which may be `end`. That one is no part of an n-gram."""
    ended = end is not None and ids[-1:] == [end]
    text = ids[:-1] if ended else ids
    return Variety(seq_rep(text, 4), distinct_n([text], 1), distinct_n([text], 2), None if end is None else int(ended))


def prompt_numbers(items: Sequence[Item]) -> dict[str, float]:
    """What the measures of a prompt are made of, by group: `greedy_seq_rep_4`, …; without what has no value.

    Completions of a group are averaged, and their losses added up; `distinct_n` is of all their n-grams together.
    """
    groups = {group: [item for item in items if item.is_greedy == (group == GREEDY)] for group in GROUPS}
    found = {f"{group}_{key}": value for group in GROUPS for key, value in _numbers(groups[group]).items()}
    return {key: value for key, value in found.items() if value is not None}


def _numbers(items: Sequence[Item]) -> dict[str, float | None]:
    texts = [item.ids[: len(item.ids) - (item.ended or 0)] for item in items]
    numbers = {
        "seq_rep_4": _mean([item.seq_rep_4 for item in items]),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "length": _mean([item.drawn for item in items]),
        "ended": _mean([item.ended for item in items]),
    }
    if scored := sum(item.base_scored or 0 for item in items):
        numbers |= {"base_nll": sum(item.base_nll or 0.0 for item in items), "base_scored": scored}
    return numbers


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def measure_metrics(
    task: str,
    prompts: Sequence[Mapping[str, float]],
    protocols: Mapping[str, Mapping[str, object]],
    base: Mapping[str, object],
    base_ids: int,
) -> Iterator[MetricValue]:
    """Yield every measure that has a value, over the `prompt_numbers` of each prompt.

    `protocols` are the contents by group; `base` is added where the base judges, which has `base_ids` text ids.
    """
    for group, content in protocols.items():
        for name, what in MEASURES.items():
            key, *weight = keys = tuple(f"{group}_{part}" for part in what.items)
            some = [numbers for numbers in prompts if key in numbers]
            ratio = ratio_of_sums(
                [numbers[key] for numbers in some], [numbers[weight[0]] if weight else 1 for numbers in some]
            )
            if ratio is None:
                continue
            protocol = Protocol({**content, **base} if what.by_base else content)
            baseline = math.log(base_ids) if what.by_base else None
            yield ratio.as_metric(f"{task}/{group}_{name}", what.unit, "none", protocol, baseline, keys)


def describe(item: Item) -> str:
    """A completion's numbers in a line, for the page of the task."""
    parts = [f"{item.drawn} ids"]
    if item.image_ids:
        parts.append(f"{item.image_ids} of images")
    if item.ended is not None:
        parts.append("ended" if item.ended else "not ended")
    if item.seq_rep_4 is not None:
        parts.append(f"seq-rep-4 {item.seq_rep_4:.2f}, distinct-1 {item.distinct_1:.2f}")
    if item.base_nll is not None and item.base_scored is not None:
        parts.append(describe_loss(item.base_nll, item.base_scored, item.drawn))
    return ", ".join(parts)


def describe_loss(nll: float, scored: int, drawn: int) -> str:
    """The base's loss on a completion of `drawn` ids, of which it was given `scored`."""
    if not scored:
        return "nothing that the base can judge"
    of = "" if scored == drawn else f" on the first {scored} ids"
    return f"the base's loss {nll / scored:.2f} nats/token{of}"
