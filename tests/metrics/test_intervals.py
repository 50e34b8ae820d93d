"""Intervals of means: Student's t, and the correction for skewness."""

import math
import random
import statistics
from collections.abc import Callable

import pytest
from scipy import stats

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.intervals import MIN_ITEMS, Spread, bend_of, confidence_interval
from evalsvc.metrics.student import critical_value, upper_tail

Draw = Callable[[random.Random], float]
"""A number whose mean is 0."""

DRAWN: dict[str, Draw] = {
    "normal": lambda random: random.gauss(0, 1),
    "exponential": lambda random: random.expovariate(1) - 1,
    "lognormal": lambda random: random.lognormvariate(0, 1) - math.exp(0.5),
    "t3": lambda random: random.gauss(0, 1) / math.sqrt(random.gammavariate(1.5, 2) / 3),
}


def spread_of(values: list[float]) -> Spread:
    n = len(values)
    return Spread(statistics.stdev(values) / math.sqrt(n), n - 1, bend_of(values))


def missed(kind: str, n: int, tail: float, draws: int) -> tuple[float, float]:
    """The shares of samples whose bound below, and whose bound above, leaves out the truth."""
    random_, below, above = random.Random(n), 0, 0
    for _ in range(draws):
        values = [DRAWN[kind](random_) for _ in range(n)]
        mean, reach = statistics.fmean(values), spread_of(values).reach(tail)
        below += mean - reach[0] > 0
        above += mean + reach[1] < 0
    return below / draws, above / draws


class TestSpread:
    def test_without_skewness_it_is_students(self) -> None:
        below, above = Spread(0.5, 9).reach(0.025)
        assert below == above == pytest.approx(0.5 * stats.t.isf(0.025, 9))

    def test_with_infinite_freedom_it_is_the_normal_one(self) -> None:
        assert Spread(1.0, math.inf).reach(0.005)[0] == pytest.approx(2.575829, rel=1e-6)

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

    def test_one_side_of_skewed_items_at_three_errors(self) -> None:
        """Where Student's t alone misses seven times as often as it says."""
        assert max(missed("exponential", 50, 0.0228, 1500)) < 1.5 * 0.0228


class TestBend:
    def test_of_symmetric_items_is_zero(self) -> None:
        assert bend_of([-2.0, -1.0, 0.0, 1.0, 2.0]) == 0.0

    def test_is_the_skewness_of_scipy_enlarged(self) -> None:
        values, n = [0.1, 0.4, 3.0, 1.2, 0.2, 0.9], 6
        skewness = stats.skew(values, bias=False)
        assert bend_of(values) == pytest.approx(skewness * (1 + 4 / math.sqrt(n)) / (6 * math.sqrt(n)))

    def test_of_equal_or_few_items_is_zero(self) -> None:
        assert bend_of([1.0] * 9) == bend_of([1.0, 5.0]) == bend_of([]) == 0.0


@pytest.mark.parametrize("level", [0, 1, -0.5, math.nan])
def test_a_level_that_is_none(level: float) -> None:
    with pytest.raises(InvalidRequest, match="give a number between 0 and 1"):
        confidence_interval(0, Spread(1, 9), level)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 15, 16, 63])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 6.0, 12.0])
def test_tail_is_scipys(dof: int, t: float) -> None:
    """Odd and even degrees of freedom have sums of their own, and each has a first term that is easily lost."""
    assert upper_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), abs=1e-14)


@pytest.mark.parametrize("dof", [1, 2, 7, 15, 100])
@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-5])
def test_critical_value_is_scipys(dof: int, level: float) -> None:
    assert critical_value(level, dof) == pytest.approx(stats.t.isf(level, dof), rel=1e-6)


def test_one_value_decides_nothing() -> None:
    assert critical_value(0.05, 0) == math.inf
