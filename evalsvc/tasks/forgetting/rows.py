"""Comparison of a checkpoint and its base on the same items: a row per number, with the change and its test.

A row tests the change that it shows: right or wrong questions by McNemar's exact test, other numbers by Student's test
of the mean change, guarded against skew (`metrics.intervals`). Tests of the same kind over several benchmarks are
corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from evalsvc.metrics.centred import interval_of_centred, ratio_of_centred
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Interval
from evalsvc.metrics.mcnemar import holm
from evalsvc.spec.documents.comparisons import Basis
from evalsvc.spec.protocol import Direction
from evalsvc.tasks.forgetting.pairs import (
    SCOPES,
    Pairs,
    accuracy_of,
    accuracy_pairs,
    benchmarks_of,
    bits_pairs,
    metric_named,
)
from evalsvc.tasks.forgetting.random_baselines import Baseline, random_baseline

if TYPE_CHECKING:
    from evalsvc.language.results import Results

ALPHA = 1 - LEVEL
"""Probability of at least one wrong verdict among the rows of one kind, if nothing has changed."""

ABOVE_CHANCE = 2.0
"""Standard errors by which the base must be above chance; otherwise there is nothing to forget."""

NAMED = 0.05
"""Smallest share of a change in bits per byte that is named as a cause, because even tiny parts are significant."""

BITS = "bits/byte"
NATS = "nats/token"

Verdict = Literal["lost", "gained", "indistinguishable", "too few"]
"""Verdict on the checkpoint relative to its base. `too few`: fewer independent items than a test needs."""


@dataclass(frozen=True)
class Row:
    """One number of base and checkpoint. Missing values are None."""

    what: str
    """Benchmark, or `text`."""
    metric: str
    """Metric: `acc`, `bits_per_byte`, `loss`, …"""
    scope: str
    """Scope: `all` for all ids, `text` within the text ids."""
    unit: str
    n: int
    """Number of items: questions or texts."""
    base: float
    base_stderr: float | None
    checkpoint: float
    checkpoint_stderr: float | None
    change: float
    """Checkpoint minus base."""
    change_stderr: float | None
    """Standard error of the change."""
    change_basis: Basis
    """Source of `change_stderr`."""
    change_low: float | None
    """Lower end of the change's interval of level 0.95."""
    change_high: float | None
    lost: int
    """Number of items on which the checkpoint is worse; for accuracies, questions that only the base gets right."""
    gained: int
    """Number of items on which the checkpoint is better."""
    p: float | None
    """Two-sided p-value of no change; None if there are too few items."""
    p_corrected: float | None
    """`p` corrected by Holm's method over the rows of this metric and scope."""
    verdict: Verdict
    chance: float | None = None
    """Accuracy of a model that knows nothing."""
    chance_table: int | None = None
    """Version of the table that `chance` is from; None if it is right options / options."""
    centred_base: float | None = None
    """Base's (accuracy − chance) / (1 − chance)."""
    centred: float | None = None
    """Checkpoint's (accuracy − chance) / (1 − chance)."""
    retained: float | None = None
    """`centred` / `centred_base`, if the base is above chance by two standard errors; biased low below four."""
    retained_stderr: float | None = None
    retained_low: float | None = None
    """Lower end of the interval of `retained`, of level 0.95; None if it is unbounded."""
    retained_high: float | None = None
    direction: Direction = "higher"
    """Better direction: `higher` for accuracies, `lower` for losses."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.what, self.metric, self.scope


@dataclass(frozen=True)
class Parts:
    """Decomposition of a loss change: −log p(id) = −log p(id | text) − log p(text).

    The first term is knowledge of the text, the second the expectation of other ids in its place, mainly image ids.
    """

    what: str
    unit: str
    total: Distance
    knowledge: Distance
    """Change within the text ids."""
    expectation: Distance
    """Change of the remaining term."""
    base_image_mass: float | None
    image_mass: float
    """Mean probability of image ids where text is due, of base and checkpoint; None if it was not measured."""

    def share(self, part: Distance) -> float:
        """Return a part's share of the total change; 0 if the part may be zero or has the opposite sign."""
        interval = part.interval()
        if interval is None or interval.covers_zero or not self.total.value:
            return 0.0
        return max(0.0, part.value / self.total.value)


def benchmark_rows(checkpoint: Results, base: Results) -> list[Row]:
    """Return accuracy and bits per byte of every benchmark, over all ids and within text, with rows of a benchmark
    together."""
    rows = (
        make(checkpoint, base, benchmark, scope)
        for benchmark in benchmarks_of(checkpoint)
        for make in (_accuracy, _bits)
        for scope in SCOPES
    )
    return corrected([row for row in rows if row is not None])


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with p-values and verdicts corrected for the number of rows of the same metric and scope."""
    p_values: dict[tuple[str, str, str], float | None] = {}
    for kind in {row.key[1:] for row in rows}:
        family = [row for row in rows if row.key[1:] == kind]
        family_p_values = holm([math.nan if row.p is None else row.p for row in family])
        p_values |= {row.key: None if math.isnan(p) else p for row, p in zip(family, family_p_values, strict=True)}
    return [replace(row, p_corrected=p_values[row.key], verdict=_verdict(row, p_values[row.key])) for row in rows]


def loss_row(what: str, metric: str, scope: str, unit: str, pairs: Pairs) -> Row:
    """Return the row of a number for which lower is better. Its p-value is not corrected yet."""
    return _row(what, metric, scope, unit, pairs, "lower")


def parts_of(what: str, unit: str, everything: Pairs, within: Pairs, masses: tuple[float | None, float]) -> Parts:
    """Decompose a change. `everything` and `within` are losses over all ids and within text; `masses` are image masses
    of base and checkpoint."""
    base, checkpoint = (
        [total - part for total, part in zip(getattr(everything, side), getattr(within, side), strict=True)]
        for side in ("base", "checkpoint")
    )
    expectation = Pairs(base, checkpoint, everything.weights)
    return Parts(what, unit, everything.difference(), within.difference(), expectation.difference(), *masses)


def benchmark_parts(checkpoint: Results, base: Results) -> list[Parts]:
    """Return the decomposition of each benchmark's bits per byte, if the table has more than text."""
    decompositions = []
    for benchmark in benchmarks_of(checkpoint):
        everything, within = (bits_pairs(checkpoint, base, benchmark, scope) for scope in SCOPES)
        mass = _value(checkpoint, f"{benchmark}/image_mass")
        if everything is not None and within is not None and mass is not None:
            masses = _value(base, f"{benchmark}/image_mass") or 0.0, mass
            decompositions.append(parts_of(benchmark, BITS, everything, within, masses))
    return decompositions


def what_is_gone(
    accuracy: Row, rows: Mapping[tuple[str, str, str], Row], parts: Parts | None, p_recovered: float
) -> str:
    """Say in words what is lost of a benchmark: knowledge, or only room taken by the expectation of an image.

    Right answers that are lost within text ids as well were known. Right answers that come back within text ids
    (`p_recovered`, see `recovered`) were suppressed by other ids. If none are lost, bits per byte decide in the same
    way. `rows` are by their keys.
    """
    within = rows.get((accuracy.what, accuracy.metric, "text"))
    if accuracy.verdict == "too few":
        return f"too few questions to tell: {accuracy.n} of {MIN_ITEMS}"
    if accuracy.verdict == "gained":
        return "nothing: more right answers"
    if accuracy.verdict == "lost":
        known, expected = within is None or within.verdict == "lost", p_recovered <= ALPHA
        return f"answers: {_causes(known, expected)}"
    if within is not None and within.verdict == "lost":
        return "answers, with text ids only"
    bits, bits_within = (rows.get((accuracy.what, "bits_per_byte", ids)) for ids in ("all", "text"))
    if bits is None or bits.verdict in ("indistinguishable", "too few"):
        return "nothing that is seen"
    if bits.verdict == "gained":
        return "nothing: better bits"
    if parts is None or bits_within is None:
        return f"bits: {_causes(known=True, expected=False)}"
    known = bits_within.verdict == "lost" and parts.share(parts.knowledge) >= NAMED
    return f"bits: {_causes(known, parts.share(parts.expectation) >= NAMED)}"


def _causes(known: bool, expected: bool) -> str:
    if known and expected:
        return "knowledge, expectation of an image"
    if known:
        return "knowledge"
    return "expectation of an image" if expected else "not decided which"


def recovered(checkpoint: Results, base: Results) -> dict[str, float]:
    """Return, by benchmark, the corrected p-value that equally many right answers are lost and recovered with text ids
    only.

    The test is over questions that the checkpoint gets right within text but not over all ids, minus the same for the
    base.
    """
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


def _accuracy(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Row | None:
    metric, pairs = accuracy_of(checkpoint, benchmark, scope), accuracy_pairs(checkpoint, base, benchmark, scope)
    if metric is None or pairs is None:
        return None
    name = metric.name.partition("/")[2].replace("_within", "", 1)
    row = _row(benchmark, name, SCOPES[scope], metric.unit, pairs, "higher")
    return _above_chance(row, pairs, random_baseline(benchmark, metric.baseline or 0.0))


def _above_chance(row: Row, pairs: Pairs, chance: Baseline) -> Row:
    r = chance.value
    row = replace(
        row,
        chance=r,
        chance_table=chance.table,
        centred_base=(row.base - r) / (1 - r),
        centred=(row.checkpoint - r) / (1 - r),
    )
    if row.base_stderr is None or row.base - r <= ABOVE_CHANCE * row.base_stderr:
        return row
    ratio = ratio_of_centred(pairs.base, pairs.checkpoint, r)
    assert ratio is not None, "the base is above chance"
    interval = _interval_of_retained(row, pairs, r)
    stderr = None if ratio.stderr is None else pairs.factor * ratio.stderr
    if pairs.checkpoint == pairs.base and row.change_stderr is not None:
        stderr = row.change_stderr / (row.base - r)
    return replace(
        row,
        retained=ratio.value,
        retained_stderr=stderr,
        retained_low=interval.low if interval else None,
        retained_high=interval.high if interval else None,
    )


def _interval_of_retained(row: Row, pairs: Pairs, chance: float) -> Interval | None:
    """Return the interval of a ratio of accuracies above chance; None below `MIN_ITEMS`.

    If both give the same answers, the interval is that of the change, relative to the base's accuracy above chance.
    """
    if pairs.checkpoint == pairs.base and row.change_low is not None and row.change_high is not None:
        above = row.base - chance
        return Interval(1 + row.change_low / above, 1 + row.change_high / above, LEVEL)
    return interval_of_centred(pairs.base, pairs.checkpoint, chance, factor=pairs.factor)


def _bits(checkpoint: Results, base: Results, benchmark: str, scope: str) -> Row | None:
    pairs = bits_pairs(checkpoint, base, benchmark, scope)
    return None if pairs is None else loss_row(benchmark, "bits_per_byte", SCOPES[scope], BITS, pairs)


def _row(what: str, metric: str, scope: str, unit: str, pairs: Pairs, direction: Direction) -> Row:
    base, checkpoint, change = pairs.side(pairs.base), pairs.side(pairs.checkpoint), pairs.difference()
    counts, interval = pairs.counts(direction == "higher"), change.interval()
    p = change.p_value()
    if p is None:  # a number is not finite, but the two can still be ordered
        p = counts.p
    if change.independent < MIN_ITEMS:
        p = None
    return Row(
        what,
        metric,
        scope,
        unit,
        change.n,
        base.value,
        base.stderr,
        checkpoint.value,
        checkpoint.stderr,
        change.value,
        change.stderr,
        change.basis,
        interval.low if interval else None,
        interval.high if interval else None,
        counts.only_a,
        counts.only_b,
        p,
        p,
        "indistinguishable",
        direction=direction,
    )


def _verdict(row: Row, p_corrected: float | None) -> Verdict:
    if p_corrected is None:
        return "too few"
    if p_corrected > ALPHA or not row.change or math.isnan(row.change):
        return "indistinguishable"
    return "gained" if (row.change > 0) == (row.direction == "higher") else "lost"


def _value(results: Results, name: str) -> float | None:
    metric = metric_named(results, name)
    return None if metric is None else metric.value
