"""What a checkpoint and its base make of the same items: a row for each number, how far apart, and whether it is real.

A row tests the change that it prints: of questions that are right or wrong by McNemar's exact test, else by Student's
test of the mean change, guarded against skew (`metrics.intervals`). Tests of the same kind over several benchmarks are
corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evalsvc.language.results import Results
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

ALPHA = 1 - LEVEL
"""The probability of at least one wrong verdict among the rows of one kind, if nothing has changed."""

ABOVE_CHANCE = 2.0
"""Standard errors by which the base must be above chance, or there is nothing that could be forgotten."""

NAMED = 0.05
"""Share of a change of bits per byte from which a part of it is called a cause: the smallest parts are real, too."""

BITS = "bits/byte"
NATS = "nats/token"

Verdict = Literal["lost", "gained", "indistinguishable", "too few"]
"""Of the checkpoint, against its base. `too few`: there are not as many independent items as a test needs."""


@dataclass(frozen=True)
class Row:
    """One number of both. Of what has no such value, None."""

    what: str
    """A benchmark, or `text`."""
    metric: str
    """`acc`, `bits_per_byte`, `loss`, …"""
    scope: str
    """`all`: over all ids. `text`: within the text ids."""
    unit: str
    n: int
    """Items: questions or texts."""
    base: float
    base_stderr: float | None
    checkpoint: float
    checkpoint_stderr: float | None
    change: float
    """Checkpoint less base."""
    change_stderr: float | None
    """The standard error of the change."""
    change_basis: Basis
    """Where `change_stderr` comes from."""
    change_low: float | None
    """Of the change's interval, of level 0.95."""
    change_high: float | None
    lost: int
    """Items on which the checkpoint is worse; of accuracies: that only the base gets right."""
    gained: int
    """Items on which it is better."""
    p: float | None
    """Two-sided, that the change is zero; None where there are too few items."""
    p_corrected: float | None
    """By Holm's method, over the rows of this metric and scope."""
    verdict: Verdict
    chance: float | None = None
    """What a model that knows nothing gets right."""
    chance_table: int | None = None
    """The version of the table that `chance` is from; None: it is right options / options."""
    centred_base: float | None = None
    """(base − chance) / (1 − chance)"""
    centred: float | None = None
    """The same of the checkpoint."""
    retained: float | None = None
    """`centred` / `centred_base`, where the base is above chance by two standard errors; below four, a low estimate."""
    retained_stderr: float | None = None
    retained_low: float | None = None
    """Of its interval, of level 0.95; None where it has no end."""
    retained_high: float | None = None
    direction: Direction = "higher"
    """Which side is better: `higher` of accuracies, `lower` of losses."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.what, self.metric, self.scope


@dataclass(frozen=True)
class Parts:
    """Where a change of a loss comes from: −log p(id) = −log p(id | text) − log p(text).

    The first term is what is known of the text, the second what other ids are expected in its place: images above all.
    """

    what: str
    unit: str
    total: Distance
    knowledge: Distance
    """Change within the text ids."""
    expectation: Distance
    """Change of the rest."""
    base_image_mass: float | None
    image_mass: float
    """Mean probability of image ids where text is due, of base and checkpoint; None: it was not measured."""

    def share(self, part: Distance) -> float:
        """Of the total change; 0 where the part may be nothing or goes the other way."""
        interval = part.interval()
        if interval is None or interval.covers_zero or not self.total.value:
            return 0.0
        return max(0.0, part.value / self.total.value)


def benchmark_rows(own: Results, base: Results) -> list[Row]:
    """Accuracy and bits per byte of every benchmark, over all ids and within text; those of one are neighbours."""
    found = (
        make(own, base, benchmark, scope)
        for benchmark in benchmarks_of(own)
        for make in (_accuracy, _bits)
        for scope in SCOPES
    )
    return corrected([row for row in found if row is not None])


def corrected(rows: Sequence[Row]) -> list[Row]:
    """With p-values and verdicts that count how many rows of the same metric and scope there are."""
    p_values: dict[tuple[str, str, str], float | None] = {}
    for kind in {row.key[1:] for row in rows}:
        family = [row for row in rows if row.key[1:] == kind]
        found = holm([math.nan if row.p is None else row.p for row in family])
        p_values |= {row.key: None if math.isnan(p) else p for row, p in zip(family, found, strict=True)}
    return [replace(row, p_corrected=p_values[row.key], verdict=_verdict(row, p_values[row.key])) for row in rows]


def loss_row(what: str, metric: str, scope: str, unit: str, pairs: Pairs) -> Row:
    """Return the row of a number that is better where it is lower. Its p-value is not corrected yet."""
    return _row(what, metric, scope, unit, pairs, "lower")


def parts_of(what: str, unit: str, everything: Pairs, within: Pairs, masses: tuple[float | None, float]) -> Parts:
    """`everything` and `within` are losses over all ids and within text; `masses` those of base and checkpoint."""
    base, own = (
        [total - part for total, part in zip(getattr(everything, side), getattr(within, side), strict=True)]
        for side in ("base", "own")
    )
    expectation = Pairs(base, own, everything.weights)
    return Parts(what, unit, everything.difference(), within.difference(), expectation.difference(), *masses)


def benchmark_parts(own: Results, base: Results) -> list[Parts]:
    """Of the bits per byte of each benchmark's right answers, where the table has more than text."""
    found = []
    for benchmark in benchmarks_of(own):
        everything, within = (bits_pairs(own, base, benchmark, scope) for scope in SCOPES)
        mass = _value(own, f"{benchmark}/image_mass")
        if everything is not None and within is not None and mass is not None:
            masses = _value(base, f"{benchmark}/image_mass") or 0.0, mass
            found.append(parts_of(benchmark, BITS, everything, within, masses))
    return found


def what_is_gone(
    accuracy: Row, rows: Mapping[tuple[str, str, str], Row], parts: Parts | None, p_recovered: float
) -> str:
    """Say in words what is gone of a benchmark: knowledge, or only that an image is expected. `rows` are by their keys.

    Right answers that are lost within text ids, too, were known. Those that come back there (`p_recovered`, see
    `recovered`) were not given because other ids were expected. Where none are lost, bits per byte tell, likewise.
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


def recovered(own: Results, base: Results) -> dict[str, float]:
    """Return, by benchmark, the corrected p-value that as many right answers go as come back with text ids only.

    It is of the questions that the checkpoint gets right within text and not over all ids, less what the base does so.
    """
    p_values = {}
    for benchmark in benchmarks_of(own):
        everything, within = (accuracy_pairs(own, base, benchmark, scope) for scope in SCOPES)
        if everything is None or within is None:
            continue
        gains = Pairs(
            [own - base for base, own in zip(everything.base, everything.own, strict=True)],
            [own - base for base, own in zip(within.base, within.own, strict=True)],
            everything.weights,
        )
        counts = gains.counts(higher_is_better=True)
        p_values[benchmark] = counts.p if counts.only_b > counts.only_a else 1.0
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _accuracy(own: Results, base: Results, benchmark: str, scope: str) -> Row | None:
    metric, pairs = accuracy_of(own, benchmark, scope), accuracy_pairs(own, base, benchmark, scope)
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
    ratio = ratio_of_centred(pairs.base, pairs.own, r)
    assert ratio is not None, "the base is above chance"
    interval = _interval_of_retained(row, pairs, r)
    stderr = None if ratio.stderr is None else pairs.factor * ratio.stderr
    if pairs.own == pairs.base and row.change_stderr is not None:
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

    Where both give the same answers it is that of the change, in parts of what the base has above chance.
    """
    if pairs.own == pairs.base and row.change_low is not None and row.change_high is not None:
        above = row.base - chance
        return Interval(1 + row.change_low / above, 1 + row.change_high / above, LEVEL)
    return interval_of_centred(pairs.base, pairs.own, chance, factor=pairs.factor)


def _bits(own: Results, base: Results, benchmark: str, scope: str) -> Row | None:
    pairs = bits_pairs(own, base, benchmark, scope)
    return None if pairs is None else loss_row(benchmark, "bits_per_byte", SCOPES[scope], BITS, pairs)


def _row(what: str, metric: str, scope: str, unit: str, pairs: Pairs, direction: Direction) -> Row:
    base, own, change = pairs.side(pairs.base), pairs.side(pairs.own), pairs.difference()
    counts, interval = pairs.counts(direction == "higher"), change.interval()
    p = change.p_value()
    if p is None:  # a number is not finite, but still on one side of the other
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
        own.value,
        own.stderr,
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
