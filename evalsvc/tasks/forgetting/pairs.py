"""Paired numbers of base and checkpoint on the same items, and their differences."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evalsvc.compare.contrast import apart
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.item_shares import finite_factor
from evalsvc.metrics.mcnemar import McNemar
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.protocol import MetricValue, Protocol

if TYPE_CHECKING:
    from evalsvc.language.results import Results

ACCURACIES = ("acc", "exact_match")
"""Names of a benchmark's accuracy; the first that the benchmark has is used."""

OF_ANSWERS = "forgetting/2"
"""Version of the comparison of means over documents, whose numbers may be right (1) and wrong (0) answers. Where no
answer changes, their difference has the error of `Flips`; in version 1 the error was 0."""

SCOPES = {"": "all", "_within": "text"}
"""Scopes by suffix of metric names, with their names in tables: over all ids, and within the text ids."""


@dataclass(frozen=True)
class Pairs:
    """Numbers of base and checkpoint on the same items; the compared value is Σ number / Σ weight."""

    base: Sequence[float]
    checkpoint: Sequence[float]
    weights: Sequence[float]
    """Weights of the items on both sides: bytes or tokens; 1 for a mean."""
    indices: Sequence[int] = ()
    """Index of each item in its benchmark; empty if it is not needed."""
    groups: Sequence[Hashable] | None = None
    """Group of each item; only different groups are independent. None: every item is its own group."""
    drawn_from: int | None = None
    """Size of the population that the items were drawn from without replacement; None if the items are not a sample."""

    @property
    def factor(self) -> float:
        """Return the factor of the standard errors of a sample without replacement; 1 if the items are not a sample."""
        return finite_factor(len(self.weights), self.drawn_from)

    def side(self, numbers: Sequence[float]) -> Ratio:
        """Return the value of the base's or the checkpoint's numbers."""
        ratio = ratio_of_sums(numbers, self.weights, self.groups)
        assert ratio is not None, "some item has weight"
        return ratio if ratio.stderr is None else replace(ratio, stderr=self.factor * ratio.stderr)

    def difference(self) -> Distance:
        """Return the difference checkpoint − base."""
        sides = self._numbers(self.base), self._numbers(self.checkpoint)
        return apart(self.side(self.base), self.side(self.checkpoint), sides, drawn_from=self.drawn_from)

    def _numbers(self, numbers: Sequence[float]) -> Numbers:
        columns = [numbers] if all(weight == 1 for weight in self.weights) else [numbers, self.weights]
        return Numbers([(None, index) for index in range(len(numbers))], columns, self.groups)

    def counts(self, higher_is_better: bool) -> McNemar:
        """Count flips. `only_a`: items on which the base is better; `both`: items with equal, nonzero numbers."""
        sign = 1 if higher_is_better else -1
        gains = [
            sign * ((checkpoint > base) - (checkpoint < base))
            for base, checkpoint in zip(self.base, self.checkpoint, strict=True)
        ]
        equal = [base for base, gain in zip(self.base, gains, strict=True) if not gain]
        both_nonzero = sum(map(bool, equal))
        return McNemar(both_nonzero, gains.count(-1), gains.count(1), len(equal) - both_nonzero)


def pairs_of(checkpoint: Results, base: Results, metric: MetricValue, keys: Sequence[str]) -> Pairs | None:
    """Return the documents of the metric's benchmark that both sides have; None if none of them has any weight.

    `keys` name the number of a document, and its weight if there is one. The checkpoint's weight is used for both
    sides.
    """
    benchmark = metric.name.partition("/")[0]
    old, new = (_numbers_of(results.items, benchmark, keys) for results in (base, checkpoint))
    common = [index for index in new if index in old]
    weights = [new[index][1] if len(keys) > 1 else 1 for index in common]
    if not any(weights):
        return None
    before, after = ([side[index][0] for index in common] for side in (old, new))
    return Pairs(before, after, weights, common, drawn_from=metric.drawn_from)


def compared(metric: MetricValue, protocol: Mapping[str, object]) -> Protocol:
    """Return the protocol of a comparison of a benchmark's metric: `protocol` is merged into that of the metric."""
    version = {"comparison": OF_ANSWERS} if len(metric.items) == 1 else {}
    return Protocol({**metric.protocol.content, **protocol, **version})


def benchmarks_of(results: Results) -> list[str]:
    """Return the names of the benchmarks in the order of the suite."""
    return list(dict.fromkeys(str(item["benchmark"]) for item in results.items))


def metric_named(results: Results, name: str) -> MetricValue | None:
    """Return the metric with this name; None if there is none."""
    return next((metric for metric in results.metrics if metric.name == name), None)


def accuracy_of(results: Results, benchmark: str, scope: str) -> MetricValue | None:
    """Return the benchmark's accuracy; None if there is none."""
    candidates = (metric_named(results, f"{benchmark}/{accuracy}{scope}") for accuracy in ACCURACIES)
    return next((metric for metric in candidates if metric is not None), None)


def accuracy_pairs(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    """Return the benchmark's accuracy question by question; None if the accuracy is not a mean over questions."""
    metric = accuracy_of(checkpoint, benchmark, scope)
    if metric is None or len(metric.items) != 1:
        return None
    return pairs_of(checkpoint, base, metric, metric.items)


def bits_pairs(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    """Return the bits of the benchmark's right answers with their bytes; None if they are not measured."""
    metric = metric_named(checkpoint, f"{benchmark}/bits_per_byte{scope}")
    return None if metric is None else pairs_of(checkpoint, base, metric, (f"bits{scope}", "bytes"))


def _numbers_of(items: Iterable[Mapping[str, object]], benchmark: str, keys: Sequence[str]) -> dict[int, list[float]]:
    """Return the numbers of the benchmark's documents under `keys`, by index; documents that lack a key are left out.

    A model with text ids only has no numbers within text, because they would be equal.
    """
    by_index: dict[int, list[float]] = {}
    for item in items:
        index = item["index"]
        if item["benchmark"] == benchmark and isinstance(index, int):
            values = (item.get(key, item.get(key.replace("_within", "", 1))) for key in keys)
            numbers = [value for value in values if isinstance(value, int | float)]
            if len(numbers) == len(keys):
                by_index[index] = numbers
    return by_index
