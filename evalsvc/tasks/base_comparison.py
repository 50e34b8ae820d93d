"""From a checkpoint's benchmark results and its base's to what has been forgotten, document by document.

Differences are paired: both were asked the same, so most of what makes a document hard or easy cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evalsvc.metrics.paired import mean_of, paired_difference, ratio_of_centred
from evalsvc.metrics.ratio import Ratio
from evalsvc.protocol import MetricValue, Protocol

if TYPE_CHECKING:
    from evalsvc.language.results import Results

ACCURACIES = ("acc", "exact_match")
"""What the accuracy of a benchmark is, the first that it has."""

ABOVE_CHANCE = 2.0
"""Standard errors by which the base must be above chance, or there is nothing that could be forgotten."""

SCOPES = ("", "_within")

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Differences:
    """Metrics that are differences over documents, and what they are made of."""

    task: str
    """First half of the metrics' names."""
    metrics: list[MetricValue] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """By the documents' index. The names begin with the benchmark's, so that one row has room for a document of each:
    rows match between results whatever other benchmarks a suite has."""

    def add_changes(self, own: Results, base: Results, protocol: Mapping[str, Any]) -> None:
        """`<task>/<benchmark>_<metric>_change`: checkpoint less base, of every metric that is made of documents.

        `protocol` is put over that of the metric.
        """
        for metric in own.metrics:
            if metric.items and metric.direction != "none":
                name = metric.name.replace("/", "_", 1) + "_change"
                self._add(name, "change", metric, base.items, own.items, protocol)

    def add_icl(self, zero: Results, few: Results, protocol: Mapping[str, Any]) -> None:
        """`<task>/<benchmark>_icl`: accuracy with solved examples before each question, less that without."""
        for benchmark in _benchmarks(few):
            for scope in SCOPES:
                without, metric = (_accuracy(results, benchmark, scope) for results in (zero, few))
                if without is not None and metric is not None and metric.items:
                    content = {**protocol, "less": without.protocol.id}
                    self._add(f"{benchmark}_icl{scope}", "icl", metric, zero.items, few.items, content)

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
        old, new = (_numbers(items, benchmark, metric.items) for items in (before, after))
        paired = paired_difference(_rows(old), _rows(new), metric.name, metric.items)
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
        self.metrics.append(MetricValue(f"{self.task}/{name}", *found, content, items=keys))


@dataclass(frozen=True)
class Retained:
    """How much of the base's ability is left, over several benchmarks."""

    metrics: list[MetricValue]
    counted: list[str]
    """Benchmarks where the base is above chance."""
    at_chance: list[str]
    """The others that have an accuracy."""


def text_retained(task: str, own: Results, base: Results, protocol: Mapping[str, Any]) -> Retained:
    """`<task>/text_retained`: the mean over benchmarks of (accuracy − chance) / (the base's accuracy − chance).

    Only benchmarks count where the base is above chance by `ABOVE_CHANCE` of its standard errors: elsewhere the
    quotient is of noise. Where there is none, there is no metric.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794), as a share of the base's.
    """
    found = Retained([], [], [])
    for scope in SCOPES:
        parts: list[tuple[MetricValue, Ratio]] = []
        for benchmark in _benchmarks(own):
            after = _accuracy(own, benchmark, scope)
            before = _accuracy(base, benchmark, scope) or _accuracy(base, benchmark, "")
            if after is None or before is None or not after.items:
                continue
            above = _above_chance(before)
            if not scope:
                (found.counted if above else found.at_chance).append(benchmark)
            ratio = _share(own, base, after, before) if above else None
            parts += [] if ratio is None else [(after, ratio)]
        mean = mean_of([ratio for _, ratio in parts])
        if mean is not None:
            members = {metric.name: metric.protocol.id for metric, _ in parts}
            content = Protocol({**protocol, "members": members, "above_chance": ABOVE_CHANCE})
            name = f"{task}/text_retained{scope}"
            found.metrics.append(MetricValue(name, mean.value, mean.stderr, mean.n, "fraction", "higher", content, 0.0))
    return found


def _less(after: float, before: float) -> float:
    """What is infinite on both sides is equal."""
    return 0.0 if after == before else after - before


def _share(own: Results, base: Results, after: MetricValue, before: MetricValue) -> Ratio | None:
    """How much of one benchmark's accuracy above chance is left."""
    [key] = after.items
    benchmark = after.name.partition("/")[0]
    old, new = (_numbers(results.items, benchmark, after.items) for results in (base, own))
    common = [index for index in new if index in old]
    base_values, values = ([side[index][key] for index in common] for side in (old, new))
    return ratio_of_centred(base_values, values, before.baseline or 0.0)


def _above_chance(accuracy: MetricValue) -> bool:
    if accuracy.stderr is None or accuracy.baseline is None:
        return False
    return accuracy.value - accuracy.baseline > ABOVE_CHANCE * accuracy.stderr


def _benchmarks(results: Results) -> list[str]:
    return list(dict.fromkeys(str(item["benchmark"]) for item in results.items))


def _accuracy(results: Results, benchmark: str, scope: str) -> MetricValue | None:
    by_name = {metric.name: metric for metric in results.metrics}
    names = (f"{benchmark}/{accuracy}{scope}" for accuracy in ACCURACIES)
    return next((by_name[name] for name in names if name in by_name), None)


def _numbers(items: Sequence[Item], benchmark: str, keys: Sequence[str]) -> dict[int, dict[str, float]]:
    """By the documents' index, of those that have them all.

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
