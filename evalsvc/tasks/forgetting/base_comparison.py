"""From a checkpoint's benchmark results and its base's to what has been forgotten, document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalsvc.language.results import Results
from evalsvc.metrics.item_numbers import Numbers, is_share, item_numbers
from evalsvc.metrics.paired import difference_of
from evalsvc.spec.protocol import MetricValue, Protocol

ACCURACIES = ("acc", "exact_match")
"""What the accuracy of a benchmark is, the first that it has."""

SCOPES = {"": "all", "_within": "text"}
"""How the names end of what is over all ids, and within the text ids; and what tables call that."""

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Differences:
    """Metrics that are differences over documents, and what they are made of."""

    task: str
    """First half of the metrics' names."""
    metrics: list[MetricValue] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """By the documents' index; names begin with the benchmark's, so that a row has room for a document of each."""

    def add_changes(self, own: Results, base: Results, protocol: Mapping[str, Any]) -> None:
        """Add `<task>/<benchmark>_<metric>_change`: checkpoint less base, of every mean over a benchmark's documents.

        `protocol` is put over that of the metric. Perplexities, which are no means, and groups of benchmarks have none.
        """
        for metric in own.metrics:
            mean = bool(metric.items) and not is_share(metric.items) and metric.unit != "perplexity"
            if mean and metric.direction != "none":
                name = metric.name.replace("/", "_", 1) + "_change"
                self._add(name, "change", metric, base.items, own.items, protocol)

    def add_icl(self, zero: Results, few: Results, protocol: Mapping[str, Any]) -> None:
        """`<task>/<benchmark>_icl`: accuracy with solved examples before each question, less that without."""
        for benchmark in benchmarks_of(few):
            for scope in SCOPES:
                without, metric = (accuracy_of(results, benchmark, scope) for results in (zero, few))
                if without is not None and metric is not None and metric.items:
                    content = {**protocol, "less": without.protocol.id}
                    self._add(f"{benchmark}_icl{scope}", "icl", metric, zero.items, few.items, content)

    def add_numbers(self, key: str, numbers: Mapping[int, float]) -> None:
        """Put a number of each document, by its index, under a key that begins with the benchmark's name."""
        for index, number in numbers.items():
            self.numbers.setdefault(index, {})[key] = number

    def _add(
        self,
        name: str,
        what: str,
        metric: MetricValue,
        before: Sequence[Item],
        after: Sequence[Item],
        protocol: Mapping[str, Any],
    ) -> None:
        """after − before, of the metric of which `metric` is the value after."""
        benchmark = metric.name.partition("/")[0]
        old, new = (numbers_of(items, benchmark, metric.items) for items in (before, after))
        sides: list[Numbers] = [item_numbers(_rows(side), metric.name, metric.items) for side in (old, new)]
        paired = difference_of(*sides, drawn_from=metric.drawn_from)
        if paired is None:
            return
        value, *weight = metric.items
        keys = f"{benchmark}_{value}_{what}", *(f"{benchmark}_{key}" for key in weight)
        for index in [index for index in new if index in old]:
            row = self.numbers.setdefault(index, {})
            row[keys[0]] = _less(new[index][value], old[index][value])
            row.update({f"{benchmark}_{key}": new[index][key] for key in weight})
        content = Protocol({**metric.protocol.content, **protocol})
        found = (paired.value, paired.stderr, paired.n, metric.unit, metric.direction)
        drawn = metric.drawn_from
        self.metrics.append(MetricValue(f"{self.task}/{name}", *found, content, items=keys, drawn_from=drawn))


def _less(after: float, before: float) -> float:
    """What is infinite on both sides is equal."""
    return 0.0 if after == before else after - before


def benchmarks_of(results: Results) -> list[str]:
    """Names, in the order of the suite."""
    return list(dict.fromkeys(str(item["benchmark"]) for item in results.items))


def accuracy_of(results: Results, benchmark: str, scope: str) -> MetricValue | None:
    """The benchmark's accuracy, if it has one."""
    by_name = {metric.name: metric for metric in results.metrics}
    names = (f"{benchmark}/{accuracy}{scope}" for accuracy in ACCURACIES)
    return next((by_name[name] for name in names if name in by_name), None)


def numbers_of(items: Sequence[Item], benchmark: str, keys: Sequence[str]) -> dict[int, dict[str, float]]:
    """What the benchmark's documents have under `keys`, by index; without those that do not have them all.

    A model that is all text has no numbers within text: they are the same.
    """
    rows = {
        int(item["index"]): {key: item.get(key, item.get(key.replace("_within", "", 1))) for key in keys}
        for item in items
        if item["benchmark"] == benchmark
    }
    return {index: row for index, row in rows.items() if None not in row.values()}


def _rows(numbers: Mapping[int, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [{"index": index, **row} for index, row in numbers.items()]
