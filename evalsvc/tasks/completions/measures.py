"""Measures of completions: repetition, variety, and the base's loss.

Standard errors are over prompts. The first item of a prompt, the greedy one, also holds the numbers of the prompt's
groups of completions, named by group and measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from evalsvc.metrics.entropy import distinct_n
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.spec.documents.results import Completion
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.completions.spec import GREEDY

SEEDED = "seeded"

GROUPS = (GREEDY, SEEDED)


@dataclass(frozen=True)
class Measure:
    unit: str
    items: tuple[str, ...]
    """Keys as in `MetricValue.items`, without the prefix of the group."""
    by_base: bool = False
    """Whether the measure depends on the base, which is then part of the protocol."""


MEASURES = {
    "seq_rep_4": Measure("fraction", ("seq_rep_4",)),
    "distinct_1": Measure("fraction", ("distinct_1",)),
    "distinct_2": Measure("fraction", ("distinct_2",)),
    "base_loss": Measure("nats/token", ("base_nll", "base_scored"), by_base=True),
    "length": Measure("tokens", ("length",)),
    "ended": Measure("fraction", ("ended",)),
}
"""Measures by name. Metrics are called `<task>/<group>_<measure>`. No direction is better: a text may be too varied or
too plain."""


def prompt_numbers(items: Sequence[Completion]) -> dict[str, float]:
    """Return the numbers behind the measures of a prompt, by group: `greedy_seq_rep_4`, …; missing values are left out.

    Completions of a group are averaged, and their losses summed; `distinct_n` counts the n-grams of all of them
    together.
    """
    groups = {group: [item for item in items if (item.way == GREEDY) == (group == GREEDY)] for group in GROUPS}
    numbers = {f"{group}_{key}": value for group in GROUPS for key, value in _numbers(groups[group]).items()}
    return {key: value for key, value in numbers.items() if value is not None}


def _numbers(items: Sequence[Completion]) -> dict[str, float | None]:
    # The id that ends a text is part of no n-gram.
    texts = [ids[: len(ids) - (item.ended or 0)] for item in items for ids in [item.ids or []]]
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
    """Yield every measure that has a value, over the `prompt_numbers` of all prompts.

    `protocols` are the contents by group. `base`, which has `base_ids` text ids, is added to measures that depend on
    the base.
    """
    for group, content in protocols.items():
        for name, what in MEASURES.items():
            key, *weight = keys = tuple(f"{group}_{part}" for part in what.items)
            present = [numbers for numbers in prompts if key in numbers]
            ratio = ratio_of_sums(
                [numbers[key] for numbers in present], [numbers[weight[0]] if weight else 1 for numbers in present]
            )
            if ratio is None:
                continue
            protocol = Protocol({**content, **base} if what.by_base else content)
            baseline = math.log(base_ids) if what.by_base else None
            yield ratio.as_metric(f"{task}/{group}_{name}", what.unit, "none", protocol, baseline, keys)
