"""Cells of comparisons, difference curves, what is left of a base's abilities, and the yardsticks of a loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np

from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.contrast import APART, contrast_between
from evalsvc.compare.difference_curves import difference_curves
from evalsvc.compare.result import Measured, Result
from evalsvc.language.results import Results, plain_mean
from evalsvc.metrics.entropy import unigram_loss
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.comparisons import Band, Family
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.forgetting.retention import Differences, add_retention, text_retained
from evalsvc.tasks.forgetting.rows import Pairs, benchmark_rows, corrected, row_of
from simulated.cells import Cell, Draw, Generator, Simulation
from simulated.data import PROTOCOL, SHAPES, Array, Shape, document, mean, metric, result
from simulated.gates import changed
from simulated.means import ALPHA, MIN_ITEMS, TOO_FEW, of_difference, of_value

CHANCE = 0.25
METRICS = 40
STEPS = 20

# comparisons


def comparison(n: int, family: Family) -> Simulation:
    """Whether any of `METRICS` unchanged, independent metrics is called better or worse."""
    options = Options(family=family)

    def draw(random: Generator) -> Draw:
        pairs = [changed(SHAPES["normal"], random, n) for _ in range(METRICS)]
        a, b = (
            result(name, *(metric(f"t/x{place}", pair[side]) for place, pair in enumerate(pairs)))
            for side, name in enumerate("ab")
        )
        found = compare_results(a, b, options).contrasts
        return Draw(alarm=any(contrast.verdict in APART for contrast in found))

    return draw


def missing_item(n: int) -> Simulation:
    """One item is on one side only: the others still pair."""

    def draw(random: Generator) -> Draw:
        base, own = changed(SHAPES["normal"], random, n)
        a, b = result("a", metric("t/x", base)), result("b", metric("t/x", own[:-1]))
        sides = [Measured(one.values["t/x"][PROTOCOL.id], one) for one in (a, b)]
        found = contrast_between(*sides).distance
        assert found is not None
        return of_difference(found, 0.0)._replace(verdict=found.basis)

    return draw


def curve(n: int, correlation: float, band: Band, asked: str) -> Simulation:
    """Two runs without any difference at `STEPS` steps; `asked`: any step apart, or any change of sign."""

    def draw(random: Generator) -> Draw:
        steps, gaps = [], random.standard_normal(n)
        for step in range(STEPS):
            gaps = correlation * gaps + math.sqrt(1 - correlation**2) * random.standard_normal(n)
            base = 3 + random.standard_normal(n)
            steps.append((step, result("a", metric("t/x", base)), result("b", metric("t/x", base + gaps))))
        [found] = difference_curves("a", "b", steps, Options(), band).curves
        apart = any(verdict in APART for verdict in found.verdict)
        return Draw(alarm=apart if asked == "apart" else bool(found.sign_changes))

    return draw


# benchmarks


def answers_of(benchmarks: Sequence[Array]) -> Results:
    """What the language task finds of benchmarks with these right (1) and wrong (0) answers."""
    metrics, items = [], []
    for place, right in enumerate(benchmarks):
        found = mean(right)
        protocol = Protocol({"benchmark": f"b{place}"})
        metrics.append(
            MetricValue(
                f"b{place}/acc", found.value, found.stderr, found.n, "fraction", "higher", protocol, CHANCE, ("acc",)
            )
        )
        items += [
            {"benchmark": f"b{place}", "index": index, "acc": number} for index, number in enumerate(right.tolist())
        ]
    return Results(metrics, items, {})


def retained_answers(random: Generator, n: int, base: float, left: float) -> tuple[Array, Array]:
    """Right answers of a base, and of a checkpoint that has `left` of the accuracy above chance; they depend."""
    own = CHANCE + left * (base - CHANCE)
    difficulty = random.random(n)
    swapped = random.random(n) < 0.3
    again = np.where(swapped, random.random(n), difficulty)
    return (difficulty < base).astype(float), (again < own).astype(float)


def as_result(name: str, metrics: Sequence[MetricValue], items: Sequence[dict[str, Any]]) -> Result:
    return Result(name, document(metrics).model_copy(update={"items": {"t": list(items)}}))


def of_results(name: str, a: Result, b: Result, truth: float) -> Draw:
    """The difference of one metric of two results, as comparisons and the gate take it."""
    sides = [Measured(next(iter(one.values[name].values())), one) for one in (a, b)]
    found = contrast_between(*sides).distance
    assert found is not None
    return of_difference(found, truth)._replace(verdict=found.basis)


def mean_over_benchmarks(benchmarks: int, n: int, lost: float) -> Simulation:
    """`language/mean` of two checkpoints, the second with `lost` less accuracy on each benchmark."""
    loaded: Any = SimpleNamespace(
        groups=[], benchmarks=[SimpleNamespace(name=f"b{place}") for place in range(benchmarks)]
    )

    def side(name: str, columns: Sequence[Array]) -> Result:
        found = answers_of(columns)
        return as_result(name, plain_mean("language", ["acc"], loaded, found), found.items)

    def draw(random: Generator) -> Draw:
        left = 1 - lost / (0.6 - CHANCE)
        pairs = [retained_answers(random, n, 0.6, left) for _ in range(benchmarks)]
        a, b = (side(name, [pair[place] for pair in pairs]) for place, name in enumerate("ab"))
        return of_results("language/mean", a, b, -lost)

    return draw


def retained(n: int, accuracy: float, left: float) -> Simulation:
    """Of one benchmark; no claim where the base is not above chance."""

    def draw(random: Generator) -> Draw:
        base, own = (answers_of([side]) for side in retained_answers(random, n, accuracy, left))
        differences, rows = Differences("t"), benchmark_rows(own, base)
        add_retention(differences, rows, own, base, {})
        found = [metric for metric in differences.metrics if metric.name.endswith("_retained")]
        row = next(row for row in rows if row.metric == "acc" and row.scope == "all")
        if not found or row.retained_low is None or row.retained_high is None:
            return Draw()
        return Draw(found[0].value, found[0].stderr, row.retained_low, row.retained_high, left)

    return draw


def retained_over_benchmarks(n: int, accuracies: Sequence[float], left: float) -> Simulation:
    """`text_retained`, over benchmarks of which some are next to chance."""

    def draw(random: Generator) -> Draw:
        pairs = [retained_answers(random, n, accuracy, left) for accuracy in accuracies]
        base, own = (answers_of([pair[place] for pair in pairs]) for place in (0, 1))
        found = text_retained("t", benchmark_rows(own, base), own, base, {})
        if not found.metrics:
            return Draw()
        [value] = (metric for metric in found.metrics if metric.name == "t/text_retained")
        return Draw(value.value, value.stderr, *(value.ends or (None, None)), left)

    return draw


def forgetting_row(shape: Shape, n: int, asked: str) -> Simulation:
    """The row of a loss whose mean does not change; `asked`: a verdict, or a verdict that the interval denies."""

    def draw(random: Generator) -> Draw:
        base = 3 + random.standard_normal(n)
        own = base + 0.1 * shape(random, n)
        weights = random.integers(10, 30, n).astype(float)
        pairs = Pairs((base * weights).tolist(), (own * weights).tolist(), weights.tolist())
        [row] = corrected([row_of("text", "loss", "all", "nats/token", pairs)])
        if row.verdict == "too few":
            return Draw()
        called = row.verdict != "indistinguishable"
        if asked == "called":
            return Draw(row.change, row.change_stderr, row.change_low, row.change_high, 0.0, called)
        if row.change_low is None or row.change_high is None:
            return Draw(alarm=called)
        worse, better = row.change_low > 0, row.change_high < 0
        agree = row.verdict == ("lost" if worse else "gained" if better else "indistinguishable")
        return Draw(alarm=not agree)

    return draw


# yardsticks


@cache
def zipf(ids: int, power: float) -> Array:
    weights = np.arange(1, ids + 1) ** -power
    found: Array = weights / weights.sum()
    return found


def unigram(ids: int, power: float, sequences: int, length: int, by_place: bool) -> Simulation:
    """The loss of a model without context, on ids from one Zipf distribution at every place.

    It claims to be no lower than the entropy, which is the truth here; the alarm is a value below it by more than its
    interval.
    """
    p = zipf(ids, power)
    entropy = float(-(p * np.log(p)).sum())
    cumulative = np.cumsum(p)

    def draw(random: Generator) -> Draw:
        drawn = np.minimum(np.searchsorted(cumulative, random.random(sequences * length)), ids - 1)
        owners = np.repeat(np.arange(sequences), length)
        places = np.tile(np.arange(length), sequences) if by_place else None
        found = unigram_loss(drawn.astype(np.int32), owners.astype(np.int32), ids, places)
        if found is None:
            return Draw()
        value = of_value(Ratio(found.loss, found.stderr, found.sequences, found.groups), "nats/token", None)
        below = None if value.high is None else value.high < entropy
        excess = (found.loss - entropy) / (found.stderr or math.inf)
        return value._replace(alarm=below, verdict=f"{'above' if excess > 0 else 'below'} the entropy")

    return draw


def cells() -> Iterator[Cell]:
    yield from _comparisons()
    yield from _curves()
    yield from _benchmarks()
    yield from _yardsticks()


def _comparisons() -> Iterator[Cell]:
    family = f"compare, {METRICS} metrics: any apart"
    for n in (MIN_ITEMS, 20, 100):
        cell = comparison(n, "holm")
        yield Cell(family, "normal, family holm", f"{n}", cell, 2_000, ALPHA, before=".87 (pointwise)", quick=n < 100)
    for n in (20, 1_000):
        said = "unpaired, stderr .0224 for .0022" if n == 1_000 else ""
        cell = missing_item(n)
        yield Cell("compare, one item on one side only", "normal", f"{n:,}", cell, 2_000, ALPHA, before=said)


def _curves() -> Iterator[Cell]:
    before = {
        ("apart", 10, 0.0): ".242±.018",
        ("apart", 20, 0.0): ".125±.014",
        ("apart", 100, 0.0): ".050±.009",
        ("apart", 20, 0.9): ".062",
        ("changes", 20, 0.0): ".17 to .32",
    }
    for asked in ("apart", "changes"):
        title = "any step apart" if asked == "apart" else "any sign change claimed"
        for band in get_args(Band):
            if asked == "apart" and band == "pointwise":
                continue  # whose level is that of each step
            for n in (MIN_ITEMS, 10, 20, 100):
                for correlation in (0.0, 0.9):
                    said = before.get((asked, n, correlation), "")
                    family = f"difference curves of {STEPS} steps, {band} band: {title}"
                    data = f"normal, steps correlate by {correlation:g}"
                    cell = curve(n, correlation, band, asked)
                    yield Cell(family, data, f"{n}", cell, 1_000, ALPHA, before=said, quick=n <= 20)


def _benchmarks() -> Iterator[Cell]:
    for benchmarks, n in ((2, TOO_FEW), (2, MIN_ITEMS), (10, 20), (10, 300)):
        for lost in (0.0, 0.02):
            said = "unpaired, stderr .0129 for .0056" if n == 300 and lost else ""
            cell = mean_over_benchmarks(benchmarks, n, lost)
            nominal = None if lost else ALPHA
            family, data = "language/mean, paired", f"{benchmarks} benchmarks, {lost:g} lost"
            yield Cell(family, data, f"{benchmarks} × {n}", cell, 1_000, nominal, before=said, quick=n <= 20)
    for n, accuracy in ((TOO_FEW, 0.9), (50, 0.6), (200, 0.4), (200, 0.6), (1_000, 0.4), (1_000, 0.6)):
        for left in (1.0, 0.5):
            family = "…_retained of one benchmark (Fieller)"
            data = f"accuracy {accuracy:g}, chance {CHANCE:g}, {left:g} left"
            yield Cell(family, data, f"{n:,}", retained(n, accuracy, left), 1_000, claims=n >= MIN_ITEMS)
    before = {200: "value .953±.006 for 1, counting those above chance", 50: ".760±.027 for 1"}
    for n in (50, 200, 1_000):
        for left in (1.0, 0.5):
            said = before.get(n, "") if left == 1 else ""
            family, data = "text_retained over 10 benchmarks", f"five at .3, five at .6, {left:g} left"
            cell = retained_over_benchmarks(n, [0.3] * 5 + [0.6] * 5, left)
            yield Cell(family, data, f"10 × {n:,}", cell, 1_000 if n < 1_000 else 300, before=said, quick=n <= 50)
    for asked in ("called", "denied"):
        for name in ("normal", "lognormal(1)", "exponential"):
            for n in (TOO_FEW, MIN_ITEMS, 50, 200):
                family = "forgetting row of a loss: called a change"
                nominal, said = ALPHA, ""
                if asked == "denied":
                    family, nominal = "forgetting row of a loss: verdict denied by its interval", 0.0
                    said = "verdict gained, interval above zero: .27±.02" if (name, n) == ("lognormal(1)", 200) else ""
                elif name == "lognormal(1)" and n in (50, 200):
                    said = "gained in " + (".765±.021" if n == 50 else "1.00")
                cell = forgetting_row(SHAPES[name], n, asked)
                yield Cell(family, name, f"{n}", cell, 2_000, nominal, n >= MIN_ITEMS, said)


def _yardsticks() -> Iterator[Cell]:
    family = "unigram loss: not below the entropy of the ids"
    table: tuple[tuple[int, float, int, int, bool, str], ...] = (
        (200, 1.0, 2_000, 10, False, "coverage of the entropy .945±.011"),
        (1_024, 0.8, 300, 256, True, "5.259 ± .0034 for 6.012"),
        (16_384, 0.8, 300, 256, True, "5.863 ± .0023 for 8.383"),
        (16_384, 0.8, 300, 256, False, "8.349 ± .0075 for 8.383 (2,000 images)"),
        (32_000, 1.0, 300, 12, False, "6.452 ± .034 for 7.300"),
        (200, 1.0, MIN_ITEMS, 10, False, ""),
    )
    for ids, power, sequences, length, by_place, said in table:
        data = f"{ids:,} ids, Zipf({power:g}){', by place' if by_place else ''}"
        cell = unigram(ids, power, sequences, length, by_place)
        reps, quick = (1_000, True) if sequences * length < 50_000 else (60, False)
        yield Cell(family, data, f"{sequences:,} × {length}", cell, reps, ALPHA / 2, before=said, quick=quick)
