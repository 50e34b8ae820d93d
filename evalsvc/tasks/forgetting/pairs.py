"""The numbers of base and checkpoint on the same items, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evalsvc.compare.contrast import apart
from evalsvc.language.results import Results
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.item_shares import finite_factor
from evalsvc.metrics.mcnemar import McNemar
from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.spec.protocol import MetricValue

ACCURACIES = ("acc", "exact_match")
"""What the accuracy of a benchmark is, the first that it has."""

SCOPES = {"": "all", "_within": "text"}
"""How the names end of what is over all ids, and within the text ids; and what tables call that."""


@dataclass(frozen=True)
class Pairs:
    """A number of each item, of the base and of the checkpoint; what is compared is Σ number / Σ weight."""

    base: Sequence[float]
    own: Sequence[float]
    weights: Sequence[float]
    """Of both: bytes, tokens; 1 where a mean is compared."""
    indices: Sequence[int] = ()
    """The index of each item in its benchmark; empty where nobody asks."""
    groups: Sequence[Hashable] | None = None
    """The group of each item, of which only different ones are independent; None: every item is one."""
    drawn_from: int | None = None
    """Of how many the items are a sample without replacement; None: they are no sample."""

    @property
    def factor(self) -> float:
        """The factor of the errors of a sample without replacement; 1 where the items are no sample."""
        return finite_factor(len(self.weights), self.drawn_from)

    def side(self, numbers: Sequence[float]) -> Ratio:
        """Return the value of the base's or the checkpoint's numbers."""
        found = ratio_of_sums(numbers, self.weights, self.groups)
        assert found is not None, "some item has weight"
        return found if found.stderr is None else replace(found, stderr=self.factor * found.stderr)

    def difference(self) -> Distance:
        """Return checkpoint less base."""
        sides = self._numbers(self.base), self._numbers(self.own)
        return apart(self.side(self.base), self.side(self.own), sides, drawn_from=self.drawn_from)

    def _numbers(self, numbers: Sequence[float]) -> Numbers:
        columns = [numbers] if all(weight == 1 for weight in self.weights) else [numbers, self.weights]
        return Numbers([(None, index) for index in range(len(numbers))], columns, self.groups)

    def counts(self, higher_is_better: bool) -> McNemar:
        """`only_a`: items on which the base is better; of those on which both are equal, `both` have a number but 0."""
        sign = 1 if higher_is_better else -1
        gains = [sign * ((own > base) - (own < base)) for base, own in zip(self.base, self.own, strict=True)]
        equal = [base for base, gain in zip(self.base, gains, strict=True) if not gain]
        both = sum(map(bool, equal))
        return McNemar(both, gains.count(-1), gains.count(1), len(equal) - both)


def pairs_of(own: Results, base: Results, metric: MetricValue, keys: Sequence[str]) -> Pairs | None:
    """Return the documents of the metric's benchmark that both have; None where none of them has any weight.

    `keys` name the number of a document, and its weight where it has one: that of the checkpoint, which the base
    shares.
    """
    benchmark = metric.name.partition("/")[0]
    old, new = (_numbers_of(results.items, benchmark, keys) for results in (base, own))
    common = [index for index in new if index in old]
    weights = [new[index][1] if len(keys) > 1 else 1 for index in common]
    if not any(weights):
        return None
    before, after = ([side[index][0] for index in common] for side in (old, new))
    return Pairs(before, after, weights, common, drawn_from=metric.drawn_from)


def benchmarks_of(results: Results) -> list[str]:
    """Return the names of the benchmarks in the order of the suite."""
    return list(dict.fromkeys(str(item["benchmark"]) for item in results.items))


def metric_named(results: Results, name: str) -> MetricValue | None:
    """Return the metric of this name, if there is one."""
    return next((metric for metric in results.metrics if metric.name == name), None)


def accuracy_of(results: Results, benchmark: str, scope: str) -> MetricValue | None:
    """Return the benchmark's accuracy, if it has one."""
    found = (metric_named(results, f"{benchmark}/{accuracy}{scope}") for accuracy in ACCURACIES)
    return next((metric for metric in found if metric is not None), None)


def accuracy_pairs(own: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    """Return the benchmark's accuracy question by question; None where it is no mean over questions."""
    metric = accuracy_of(own, benchmark, scope)
    if metric is None or len(metric.items) != 1:
        return None
    return pairs_of(own, base, metric, metric.items)


def bits_pairs(own: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    """Return the bits of the benchmark's right answers with their bytes; None where they are not measured."""
    metric = metric_named(own, f"{benchmark}/bits_per_byte{scope}")
    return None if metric is None else pairs_of(own, base, metric, (f"bits{scope}", "bytes"))


def _numbers_of(items: Iterable[Mapping[str, object]], benchmark: str, keys: Sequence[str]) -> dict[int, list[float]]:
    """Return the numbers of the benchmark's documents under `keys`, by index; without those that lack one.

    A model that is all text has no numbers within text: they are the same.
    """
    found: dict[int, list[float]] = {}
    for item in items:
        index = item["index"]
        if item["benchmark"] == benchmark and isinstance(index, int):
            values = (item.get(key, item.get(key.replace("_within", "", 1))) for key in keys)
            numbers = [value for value in values if isinstance(value, int | float)]
            if len(numbers) == len(keys):
                found[index] = numbers
    return found
