"""Comparison of a checkpoint and its base on the same items: a row per number, with the change and its test.

A row tests the change that it shows: right or wrong questions by McNemar's exact test, other numbers by Student's test
of the mean change, guarded against skew (`metrics.intervals`). Tests of the same kind over several benchmarks are
corrected together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalsvc.compare.contrast import apart
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval
from evalsvc.metrics.item_numbers import Numbers, finite_factor
from evalsvc.metrics.mcnemar import McNemar, holm
from evalsvc.metrics.ratio import Ratio, interval_of_centred, ratio_of_centred, ratio_of_sums
from evalsvc.spec.documents.text_reports import BITS, ChangePart, ForgettingRow, LossParts, Verdict
from evalsvc.spec.protocol import Direction, MetricValue, Protocol

if TYPE_CHECKING:
    from evalsvc.language.results import Results

ACCURACIES = ("acc", "exact_match")
"""Names of a benchmark's accuracy; the first that the benchmark has is used."""

OF_ANSWERS = "forgetting/2"
"""Version of the comparison of means over documents, whose numbers may be right (1) and wrong (0) answers. Where no
answer changes, their difference has the error of `McNemar`; in version 1 the error was 0."""

SCOPES: dict[str, Literal["all", "text"]] = {"": "all", "_within": "text"}
"""Scopes by suffix of metric names, with their names in tables: over all ids, and within the text ids."""

ABOVE_CHANCE = 2.0
"""Standard errors by which the base must be above chance; otherwise there is nothing to forget."""

ALPHA = 1 - LEVEL
"""Probability of at least one wrong verdict among the rows of one kind, if nothing has changed."""

BASELINES = Path(__file__).parents[2] / "text_tasks" / "random_baselines.json"

SAME_OPTIONS = 0.02
"""Maximum distance of the mean of right options / options from the table's; beyond it, the benchmark is another."""


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
        return finite_factor(len(self.weights), self.drawn_from)

    def side(self, numbers: Sequence[float]) -> Ratio:
        ratio = ratio_of_sums(numbers, self.weights, self.groups)
        assert ratio is not None, "some item has weight"
        return ratio if ratio.stderr is None else replace(ratio, stderr=self.factor * ratio.stderr)

    def difference(self) -> Distance:
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


@dataclass(frozen=True)
class Baseline:
    """Chance accuracy of a benchmark: the r of centred accuracies (accuracy − r) / (1 − r)."""

    value: float
    table: int | None
    """Version of the table that the value is from; None if it is the mean of right options / options."""


def random_baseline(benchmark: str, options: float) -> Baseline:
    """Return the chance accuracy of a benchmark. `options` is the mean of right options / options of the questions; 0
    if there are none.

    Chance is above a uniform choice if one answer is more frequent than the others: always answering yes gets .62 of
    BoolQ. The table has a version, which is part of the protocol of metrics that use the table.
    """
    table = _baselines()
    row = table["rows"].get(benchmark)
    if row is None or abs(row["options"] - options) > SAME_OPTIONS:
        return Baseline(options, None)
    return Baseline(row["baseline"], table["version"])


@cache
def _baselines() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(BASELINES.read_text())
    return content


def pairs_of(checkpoint: Results, base: Results, metric: MetricValue, keys: Sequence[str]) -> Pairs | None:
    """Return the documents of the metric's benchmark that both sides have; None if none has weight. `keys` name the
    number of a document, and its weight if there is one: the checkpoint's, for both sides."""
    benchmark = metric.name.partition("/")[0]
    old, new = (_numbers_of(results.items, benchmark, keys) for results in (base, checkpoint))
    common = [index for index in new if index in old]
    weights = [new[index][1] if len(keys) > 1 else 1 for index in common]
    if not any(weights):
        return None
    before, after = ([side[index][0] for index in common] for side in (old, new))
    return Pairs(before, after, weights, common, drawn_from=metric.drawn_from)


def _numbers_of(items: Iterable[Mapping[str, object]], benchmark: str, keys: Sequence[str]) -> dict[int, list[float]]:
    """Return numbers by index, without documents that lack a key. A model with text ids only has no numbers within
    text, because they would be equal."""
    by_index: dict[int, list[float]] = {}
    for item in items:
        index = item["index"]
        if item["benchmark"] == benchmark and isinstance(index, int):
            values = (item.get(key, item.get(key.replace("_within", "", 1))) for key in keys)
            numbers = [value for value in values if isinstance(value, int | float)]
            if len(numbers) == len(keys):
                by_index[index] = numbers
    return by_index


def compared(metric: MetricValue, protocol: Mapping[str, object]) -> Protocol:
    """Return the protocol of a comparison of a benchmark's metric: `protocol` is merged into that of the metric."""
    version = {"comparison": OF_ANSWERS} if len(metric.items) == 1 else {}
    return Protocol({**metric.protocol.content, **protocol, **version})


def benchmarks_of(results: Results) -> list[str]:
    return list(dict.fromkeys(str(item["benchmark"]) for item in results.items))


def _metric_named(results: Results, name: str) -> MetricValue | None:
    return next((metric for metric in results.metrics if metric.name == name), None)


def accuracy_of(results: Results, benchmark: str, scope: str) -> MetricValue | None:
    candidates = (_metric_named(results, f"{benchmark}/{accuracy}{scope}") for accuracy in ACCURACIES)
    return next((metric for metric in candidates if metric is not None), None)


def accuracy_pairs(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    """Return the benchmark's accuracy question by question; None if the accuracy is not a mean over questions."""
    metric = accuracy_of(checkpoint, benchmark, scope)
    if metric is None or len(metric.items) != 1:
        return None
    return pairs_of(checkpoint, base, metric, metric.items)


def _bits_pairs(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Pairs | None:
    metric = _metric_named(checkpoint, f"{benchmark}/bits_per_byte{scope}")
    return None if metric is None else pairs_of(checkpoint, base, metric, (f"bits{scope}", "bytes"))


def benchmark_rows(checkpoint: Results, base: Results) -> list[ForgettingRow]:
    """Return accuracy and bits per byte of every benchmark, over all ids and within text, benchmark by benchmark."""
    rows = []
    for benchmark in benchmarks_of(checkpoint):
        for suffix, scope in SCOPES.items():
            metric = accuracy_of(checkpoint, benchmark, suffix)
            pairs = accuracy_pairs(checkpoint, base, benchmark, suffix)
            if metric is not None and pairs is not None:
                name = metric.name.partition("/")[2].replace("_within", "", 1)
                row = row_of(benchmark, name, scope, metric.unit, pairs, "higher")
                rows.append(_above_chance(row, pairs, random_baseline(benchmark, metric.baseline or 0.0)))
        for suffix, scope in SCOPES.items():
            if (pairs := _bits_pairs(checkpoint, base, benchmark, suffix)) is not None:
                rows.append(row_of(benchmark, "bits_per_byte", scope, BITS, pairs))
    return corrected(rows)


def corrected(rows: Sequence[ForgettingRow]) -> list[ForgettingRow]:
    """Return the rows with p-values and verdicts corrected for the number of rows of the same metric and scope."""
    p_values: dict[tuple[str, str, str], float | None] = {}
    for kind in {row.key[1:] for row in rows}:
        family = [row for row in rows if row.key[1:] == kind]
        family_p_values = holm([math.nan if row.p is None else row.p for row in family])
        p_values |= {row.key: None if math.isnan(p) else p for row, p in zip(family, family_p_values, strict=True)}
    return [
        row.model_copy(update={"p_corrected": p_values[row.key], "verdict": _verdict(row, p_values[row.key])})
        for row in rows
    ]


def _verdict(row: ForgettingRow, p: float | None) -> Verdict:
    if p is None or p > ALPHA or not row.change or math.isnan(row.change):
        return "too few" if p is None else "indistinguishable"
    return "gained" if (row.change > 0) == (row.direction == "higher") else "lost"


def row_of(
    what: str, metric: str, scope: Literal["all", "text"], unit: str, pairs: Pairs, direction: Direction = "lower"
) -> ForgettingRow:
    """Return the row of a number, whose p-value is not corrected yet."""
    base, checkpoint, change = pairs.side(pairs.base), pairs.side(pairs.checkpoint), pairs.difference()
    counts, interval = pairs.counts(direction == "higher"), change.interval()
    # A number that is not finite has no test, but the two can still be ordered.
    p: float | None = counts.p if (p_value := change.p_value()) is None else p_value
    if change.independent < MIN_ITEMS:
        p = None
    return ForgettingRow(
        what=what,
        metric=metric,
        scope=scope,
        unit=unit,
        n=change.n,
        base=base.value,
        base_stderr=base.stderr,
        checkpoint=checkpoint.value,
        checkpoint_stderr=checkpoint.stderr,
        change=change.value,
        change_stderr=change.stderr,
        change_basis=change.basis,
        change_low=interval.low if interval else None,
        change_high=interval.high if interval else None,
        lost=counts.only_a,
        gained=counts.only_b,
        p=p,
        p_corrected=p,
        verdict="indistinguishable",
        direction=direction,
    )


def _above_chance(row: ForgettingRow, pairs: Pairs, chance: Baseline) -> ForgettingRow:
    r, above = chance.value, row.base - chance.value
    columns: dict[str, float | None] = {
        "chance": r,
        "chance_table": chance.table,
        "centred_base": above / (1 - r),
        "centred": (row.checkpoint - r) / (1 - r),
    }
    if row.base_stderr is not None and above > ABOVE_CHANCE * row.base_stderr:
        ratio = ratio_of_centred(pairs.base, pairs.checkpoint, r)
        assert ratio is not None, "the base is above chance"
        stderr = None if ratio.stderr is None else pairs.factor * ratio.stderr
        # Equal answers leave no error of the ratio; use that of the change, relative to the base above chance.
        is_equal = pairs.checkpoint == pairs.base
        if is_equal and row.change_stderr is not None:
            stderr = row.change_stderr / above
        if is_equal and row.change_low is not None and row.change_high is not None:
            interval: Interval | None = Interval(1 + row.change_low / above, 1 + row.change_high / above, LEVEL)
        else:
            interval = interval_of_centred(pairs.base, pairs.checkpoint, r, factor=pairs.factor)
        columns |= {"retained": ratio.value, "retained_stderr": stderr}
        columns |= {"retained_low": interval.low, "retained_high": interval.high} if interval else {}
    return row.model_copy(update=columns)


def benchmark_parts(checkpoint: Results, base: Results) -> list[LossParts]:
    """Return the decomposition of each benchmark's bits per byte, if the table has more than text."""
    decompositions = []
    for benchmark in benchmarks_of(checkpoint):
        everything, within = (_bits_pairs(checkpoint, base, benchmark, scope) for scope in SCOPES)
        mass, base_mass = (_metric_named(results, f"{benchmark}/image_mass") for results in (checkpoint, base))
        if everything is not None and within is not None and mass is not None:
            masses = base_mass.value if base_mass else 0.0, mass.value
            decompositions.append(parts_of(benchmark, BITS, everything, within, masses))
    return decompositions


def parts_of(what: str, unit: str, everything: Pairs, within: Pairs, masses: tuple[float | None, float]) -> LossParts:
    """Decompose a change of losses over all ids and `within` text; `masses` are image masses of base and checkpoint."""
    base, checkpoint = (
        [total - part for total, part in zip(getattr(everything, side), getattr(within, side), strict=True)]
        for side in ("base", "checkpoint")
    )
    total = everything.difference()

    def part(change: Distance) -> ChangePart:
        interval, share = change.interval(), 0.0
        if interval is not None and not interval.covers_zero and total.value:
            share = max(0.0, change.value / total.value)
        return ChangePart(value=change.value, stderr=change.stderr, share=share)

    return LossParts(
        what=what,
        unit=unit,
        total=part(total),
        knowledge=part(within.difference()),
        expectation=part(Pairs(base, checkpoint, everything.weights).difference()),
        base_image_mass=masses[0],
        image_mass=masses[1],
    )


def recovered(checkpoint: Results, base: Results) -> dict[str, float]:
    """Return, by benchmark, the corrected p-value that equally many right answers are lost and recovered with text ids
    only: of questions that the checkpoint gets right only within text, minus the same for the base."""
    p_values = {}
    for benchmark in benchmarks_of(checkpoint):
        everything, within = (accuracy_pairs(checkpoint, base, benchmark, scope) for scope in SCOPES)
        if everything is None or within is None:
            continue
        gains = Pairs(
            [checkpoint - base for base, checkpoint in zip(everything.base, everything.checkpoint, strict=True)],
            [checkpoint - base for base, checkpoint in zip(within.base, within.checkpoint, strict=True)],
            everything.weights,
        )
        counts = gains.counts(higher_is_better=True)
        p_values[benchmark] = counts.p if counts.only_b > counts.only_a else 1.0
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))
