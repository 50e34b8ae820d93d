"""Intervals of values and of means."""

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from metric_items import numbers
from scipy import stats

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.definitions import Range, range_of
from evalsvc.metrics.intervals import (
    MIN_ITEMS,
    Interval,
    Spread,
    bend_of,
    confidence_interval,
    critical_value,
    percent,
    upper_tail,
)
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.value_interval import value_interval, with_intervals
from evalsvc.spec.protocol import MetricValue, Protocol

Array = np.ndarray
Sampler = Callable[[np.random.Generator, int], tuple[list[Array], Array | None]]


def answers(right: int, n: int) -> tuple[Ratio, Numbers]:
    values = [1.0] * right + [0.0] * (n - right)
    return ratio_of_sums(values, [1] * n), numbers(values)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize(("right", "n"), [(20, 20), (57, 60), (0, 9)])
def test_of_answers_is_wilsons(right: int, n: int) -> None:
    """20 right of 20 are not 1 ± 0."""
    ratio, items = answers(right, n)
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    found = ends(value_interval(ratio, "fraction", "share", items))
    assert found == pytest.approx((expected.low, expected.high), abs=0.01), "with the sample's own variance"
    # With the normal quantile it covers the truth in .83 of eight weighted items: groups or weights make no shares.
    hits = [1.0, 0.0] * 10
    ratio, alone = answers(8, 20)
    for others in (numbers(hits, groups=[index // 2 for index in range(20)]), numbers(hits, [1.0, 2.0, 3.0, 1.0] * 5)):
        assert value_interval(ratio, "fraction", "share", others) != value_interval(ratio, "fraction", "share", alone)


def test_a_fraction_that_is_no_share_is_not_wilsons() -> None:
    """What is left of an ability may exceed 1 or fall below 0: .0061 ± .046 lay between .00003 and .58."""
    left = Ratio(0.0061, 0.046, 100)
    assert value_interval(left, "fraction") == confidence_interval(0.0061, Spread(0.046, 99))
    assert value_interval(Ratio(2.0, 0.3, 100, 10)) == confidence_interval(2.0, Spread(0.3, 9)), "groups count"


def test_of_a_perplexity_is_that_of_the_loss() -> None:
    loss, items = Ratio(2.0, 0.3, 25), numbers([2.0 + 0.3 * math.sin(index) for index in range(25)])
    found = ends(value_interval(perplexity(loss), "perplexity", "any", items))
    low, high = ends(value_interval(loss, "nats/token", "positive", items))
    assert found == pytest.approx((math.exp(low), math.exp(high)))


def test_of_known_items_is_guarded_against_their_skew_and_weights() -> None:
    skewed = numbers([float(index**3) for index in range(20)])
    ratio = ratio_of_sums(skewed.columns[0], [1] * 20)
    low, high = ends(value_interval(ratio, numbers=skewed))
    assert ratio.value - low < high - ratio.value
    one_heavy = numbers([1.0, 2.0] * 5, [1e6, *[1.0] * 9])
    assert value_interval(Ratio(2.0, 0.3, 10), numbers=one_heavy) is None


@pytest.mark.parametrize(
    "ratio",
    [
        Ratio(0.5, 0.1, MIN_ITEMS - 1),
        Ratio(0.5, None, 99),
        Ratio(math.nan, 0.1, 99),
        Ratio(0.5, 0.1, 99, 7),
        Ratio(0.5, 0.0, 99),
        Ratio(0.1, 1.4e-18, 99),
    ],
    ids=["few items", "no error", "no number", "few groups", "equal items", "equal but for rounding"],
)
def test_no_claim(ratio: Ratio) -> None:
    assert value_interval(ratio) is None


@pytest.mark.parametrize("level", [0, 1, -0.5, math.nan])
def test_a_level_that_is_none(level: float) -> None:
    with pytest.raises(InvalidRequest, match="give a number between 0 and 1"):
        confidence_interval(0, Spread(1, 9), level)


def lengths(random: np.random.Generator, n: int) -> Array:
    return np.maximum(2, np.round(random.lognormal(3.4, 0.8, n)))


def clustered(random: np.random.Generator, n: int) -> tuple[list[Array], Array]:
    """Five answers of each of n groups."""
    chances = random.beta(1.4, 0.6, n)
    return [(random.random((n, 5)) < chances[:, None]).astype(float).ravel()], np.repeat(np.arange(n), 5)


def weighted_share(random: np.random.Generator, n: int) -> tuple[list[Array], None]:
    weights, chances = lengths(random, n), random.beta(4.5, 0.5, n)
    return [random.binomial(weights.astype(int), chances).astype(float), weights], None


def lognormal(random: np.random.Generator, n: int) -> tuple[list[Array], None]:
    weights = lengths(random, n)
    return [random.lognormal(-0.5, 1, n) * weights, weights], None


@pytest.mark.parametrize(
    ("draw", "of", "truth", "least"),
    [
        (weighted_share, "share", 0.9, 0.92),
        (clustered, "share", 0.7, 0.92),
        (lognormal, "positive", 1.0, 0.91),
    ],
    ids=["weighted", "clustered", "KL"],
)
@pytest.mark.parametrize("n", [8, 20])
def test_covers_the_truth(draw: Sampler, of: Range, truth: float, least: float, n: int) -> None:
    """Of 400 samples, and no end is where the metric cannot be. Wilson's interval of weighted shares covers .83 to .89
    of .95, and the interval of skewed means without logarithms .68 to .92, with an end below zero in up to .86."""
    random = np.random.default_rng(n)
    held = known = 0
    for _ in range(400):
        columns, groups = draw(random, n)
        items = numbers(*(column.tolist() for column in columns), groups=None if groups is None else groups.tolist())
        weights = columns[1].tolist() if len(columns) > 1 else [1.0] * len(columns[0])
        ratio = ratio_of_sums(columns[0].tolist(), weights, items.groups)
        interval = value_interval(ratio, "", of, items)
        if interval is None:
            continue
        known += 1
        held += interval.low <= truth <= interval.high
        assert of == "any" or interval.low >= 0
        assert of != "share" or interval.high <= 1
    assert known > 390
    assert held / known >= least


class TestWithIntervals:
    def metric(self, name: str, value: float, *keys: str, **fields: Any) -> MetricValue:
        return MetricValue(name, value, 0.1, 10, "fraction", "higher", Protocol({}), items=keys, **fields)

    def test_are_of_the_items_of_the_metrics_benchmark(self) -> None:
        rows = {"a": [1.0, 0.0] * 5, "b": [0.5, 0.7] * 5}
        items = [
            {"benchmark": name, "index": at, "acc": value} for name, row in rows.items() for at, value in enumerate(row)
        ]
        metrics = [self.metric(f"{name}/acc", 0.5, "acc") for name in rows]
        a, b = with_intervals(metrics, "language", items)
        ratio = Ratio(0.5, 0.1, 10)
        assert a.ends == ends(value_interval(ratio, "fraction", "share", numbers(rows["a"])))
        assert b.ends == ends(value_interval(ratio, "fraction", "share", numbers(rows["b"])))
        assert a.ends != b.ends

    def test_linearised_shares_are_no_answers(self) -> None:
        """The shares of a mean over benchmarks are all 1 if every answer is right."""
        items = [{"benchmark": "a", "index": index, "group/acc": 1.0} for index in range(10)]
        (found,) = with_intervals([self.metric("group/acc", 1.0, "group/acc")], "language", items)
        assert found.ends == (confidence_interval(1.0, Spread(0.1, 9)).low, 1.0)

    def test_ends_of_the_task_stay(self) -> None:
        """Those of Fieller's interval, and none where it has no end."""
        for own in ((0.2, 1.4), (None, None)):
            (found,) = with_intervals([self.metric("forgetting/text_retained", 0.9, ends=own)], "forgetting")
            assert found.ends == own


@pytest.mark.parametrize(
    ("kind", "name", "unit", "expected"),
    [
        ("loss", "text", "nats/token", "positive"),
        ("loss", "general_text_gap", "nats/token", "any"),
        ("forgetting", "acc_norm_within", "fraction", "share"),
        ("forgetting", "arc_easy_acc_change", "fraction", "any"),
        ("forgetting", "text_retained", "fraction", "any"),
        ("forgetting", "centred", "fraction", "any"),
        ("language", "mean", "fraction", "share"),
        ("language", "mean", "bits/byte", "positive"),
        ("language", "f1", "score", "any"),
        ("text_to_image", "kid", "distance", "any"),
        ("text_to_image", "fid64", "distance", "distance"),
        (None, "image_mass", "probability", "probability"),
        (None, "fid", "points", "any"),
        ("of another package", "anything", "", "any"),
    ],
)
def test_the_range_of_a_metric(kind: str | None, name: str, unit: str, expected: Range) -> None:
    assert range_of(kind, name, unit) == expected


Draw = Callable[[random.Random], float]
"""A number whose mean is 0."""

DRAWN: dict[str, Draw] = {
    "normal": lambda random: random.gauss(0, 1),
    "exponential": lambda random: random.expovariate(1) - 1,
    "lognormal": lambda random: random.lognormvariate(0, 1) - math.exp(0.5),
    "t3": lambda random: random.gauss(0, 1) / math.sqrt(random.gammavariate(1.5, 2) / 3),
}


def missed(kind: str, n: int, tail: float, draws: int) -> tuple[float, float]:
    """The shares of samples whose bound below, and whose bound above, leaves out the truth."""
    random_, below, above = random.Random(n), 0, 0
    for _ in range(draws):
        values = [DRAWN[kind](random_) for _ in range(n)]
        mean, reach = (
            statistics.fmean(values),
            Spread(statistics.stdev(values) / math.sqrt(n), n - 1, bend_of(values)).reach(tail),
        )
        below += mean - reach[0] > 0
        above += mean + reach[1] < 0
    return below / draws, above / draws


class TestSpread:
    def test_without_skewness_it_is_students(self) -> None:
        below, above = Spread(0.5, 9).reach(0.025)
        assert below == above == pytest.approx(0.5 * stats.t.isf(0.025, 9))
        assert Spread(1.0, math.inf).reach(0.005)[0] == pytest.approx(2.575829, rel=1e-6), "the normal one"

    def test_reaches_farther_on_the_side_where_the_tail_is_short(self) -> None:
        """With a long tail to the right, a mean that is too low comes with an error that is too small."""
        below, above = Spread(1.0, 19, 0.1).reach(0.025)
        assert below == pytest.approx(stats.t.isf(0.025, 19))
        assert above > 1.2 * below

    @pytest.mark.parametrize("bend", [-0.3, -0.05, 0.0, 0.02, 0.2, 0.6])
    @pytest.mark.parametrize("tail", [0.2, 0.025, 0.00135])
    def test_bound_and_p_value_say_the_same(self, bend: float, tail: float) -> None:
        spread = Spread(1.0, 11, bend)
        below, above = spread.reach(tail)
        for estimate, at_bound in ((below, True), (-above, True), (below * 1.01, False), (-above * 0.99, False)):
            p = spread.p_value(estimate)
            if at_bound:
                assert p == pytest.approx(2 * tail, rel=1e-6)
            else:
                assert (p < 2 * tail) == (estimate > below or estimate < -above)

    @pytest.mark.parametrize("kind", DRAWN)
    @pytest.mark.parametrize("n", [MIN_ITEMS, 30])
    def test_covers_as_often_as_it_says(self, kind: str, n: int) -> None:
        assert 0.92 <= 1 - sum(missed(kind, n, 0.025, 1500)) <= 0.985
        # One side of skewed items at two errors, where Student's t alone misses several times as often as it says
        assert kind != "exponential" or n != 30 or max(missed(kind, 50, 0.0228, 1500)) < 1.5 * 0.0228


def test_the_bend_is_the_skewness_of_scipy_enlarged() -> None:
    """Of symmetric, equal and few items it is zero."""
    values, n = [0.1, 0.4, 3.0, 1.2, 0.2, 0.9], 6
    skewness = stats.skew(values, bias=False)
    assert bend_of(values) == pytest.approx(skewness * (1 + 4 / math.sqrt(n)) / (6 * math.sqrt(n)))
    assert [*map(bend_of, ([-2.0, -1.0, 0.0, 1.0, 2.0], [1.0] * 9, [1.0, 5.0], []))] == [0.0] * 4


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 15, 16, 63])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 6.0, 12.0])
def test_tail_is_scipys(dof: int, t: float) -> None:
    """Odd and even degrees of freedom have sums of their own, and each has a first term that is easily lost."""
    assert upper_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), abs=1e-14)
    level = float(stats.t.sf(max(t, 0.3), dof))
    assert critical_value(level, dof) == pytest.approx(stats.t.isf(level, dof), rel=1e-6)
    assert critical_value(level, 0) == math.inf, "one value decides nothing"


@pytest.mark.parametrize(
    ("level", "words"),
    [(0.95, "95 %"), (0.5, "50 %"), (0.9975, "99.75 %"), (1 - 0.05 / 19, "99.74 %"), (1 - 0.05 / 4e6, "99.9999988 %")],
)
def test_a_level_is_never_said_to_be_certain(level: float, words: str) -> None:
    """The best of 2,000 steps of either run was compared at "the level 1"."""
    assert percent(level) == words
