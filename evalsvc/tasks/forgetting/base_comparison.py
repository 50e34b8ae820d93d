"""Differences between the benchmark results of a checkpoint and of its base, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evalsvc.language.results import Results
from evalsvc.metrics.item_numbers import is_share
from evalsvc.metrics.value_interval import ends_of
from evalsvc.spec.protocol import MetricValue
from evalsvc.tasks.forgetting.pairs import SCOPES, accuracy_of, benchmarks_of, compared, pairs_of


@dataclass(frozen=True)
class Differences:
    """Metrics that are differences over documents, and the numbers behind them."""

    task: str
    """First half of the metrics' names."""
    metrics: list[MetricValue] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """Numbers by index of the document. Names begin with the benchmark, so that a row can hold one document of each
    benchmark."""

    def add_changes(self, checkpoint: Results, base: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_<metric>_change`: checkpoint minus base, for every mean over a benchmark's documents.

        `protocol` is merged into that of the metric. Perplexities, which are not means, and groups of benchmarks are
        left out.
        """
        for metric in checkpoint.metrics:
            mean = bool(metric.items) and not is_share(metric.items) and metric.unit != "perplexity"
            if mean and metric.direction != "none":
                name = metric.name.replace("/", "_", 1) + "_change"
                self._add(name, "change", metric, base, checkpoint, protocol)

    def add_icl(self, zero: Results, few: Results, protocol: Mapping[str, object]) -> None:
        """Add `<task>/<benchmark>_icl`: accuracy with solved examples before each question, minus the accuracy
        without."""
        for benchmark in benchmarks_of(few):
            for scope in SCOPES:
                without, metric = (accuracy_of(results, benchmark, scope) for results in (zero, few))
                if without is not None and metric is not None and metric.items:
                    content = {**protocol, "less": without.protocol.id}
                    self._add(f"{benchmark}_icl{scope}", "icl", metric, zero, few, content)

    def add_numbers(self, key: str, numbers: Mapping[int, float]) -> None:
        """Store a number for each document, by index, under a key that begins with the benchmark's name."""
        for index, number in numbers.items():
            self.numbers.setdefault(index, {})[key] = number

    def _add(
        self,
        name: str,
        what: str,
        metric: MetricValue,
        before: Results,
        after: Results,
        protocol: Mapping[str, object],
    ) -> None:
        """Add the difference after − before of a metric, of which `metric` is the value after."""
        pairs = pairs_of(after, before, metric, metric.items)
        if pairs is None:
            return
        benchmark = metric.name.partition("/")[0]
        value, *weight = metric.items
        keys = f"{benchmark}_{value}_{what}", *(f"{benchmark}_{key}" for key in weight)
        changes = map(_less, pairs.checkpoint, pairs.base)
        self.add_numbers(keys[0], dict(zip(pairs.indices, changes, strict=True)))
        if weight:
            self.add_numbers(keys[1], dict(zip(pairs.indices, pairs.weights, strict=True)))
        distance = pairs.difference()
        number = (distance.value, distance.stderr, distance.n, metric.unit, metric.direction)
        content, ends = compared(metric, protocol), ends_of(distance.interval())
        self.metrics.append(
            MetricValue(f"{self.task}/{name}", *number, content, items=keys, drawn_from=metric.drawn_from, ends=ends)
        )


def _less(after: float, before: float) -> float:
    """Return after − before; 0 if both sides are the same infinity."""
    return 0.0 if after == before else after - before
