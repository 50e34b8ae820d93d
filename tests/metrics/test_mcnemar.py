"""McNemar's test with its bounds, Holm's correction, and boundaries of repeated tests."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.mcnemar import McNemar, holm, mcnemar
from evalsvc.metrics.sequential import boundaries, level_of, spent
from evalsvc.spec.looks import Spending


def test_each_question_is_counted_once() -> None:
    counts = mcnemar([True, True, False, False, True], [True, False, True, False, False])
    assert counts == McNemar(both=1, only_a=2, only_b=1, neither=1)
    assert counts.n == 5
    with pytest.raises(ValueError, match="longer"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 71), (700, 500)])
def test_the_p_value_is_that_of_the_sign_test(only_a: int, only_b: int) -> None:
    """A normal approximation would call 0 against 5 significant. Questions on which both agree say nothing."""
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert McNemar(10, only_a, only_b, 10).p == pytest.approx(expected, rel=1e-9)
    assert McNemar(500, only_a, only_b, 4000).p == McNemar(10, only_a, only_b, 10).p


def test_holm_steps_down_and_keeps_the_order() -> None:
    """The published example: 4 tests, of which the third smallest takes over the second's larger product."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True), "what was not tested"


@pytest.mark.parametrize("level", [0.9, 0.9973])
def test_interval_and_exact_test_say_the_same(level: float) -> None:
    for n in (20, 100, 500):
        for lost in range(15):
            for gained in range(15 - lost):
                flips = McNemar(n - lost - gained, lost, gained, 0)
                below, above = flips.reach((1 - level) / 2)
                covers = flips.value - below <= 0 <= flips.value + above
                assert covers == (flips.p > 1 - level), (n, lost, gained)
                assert below > 0
                assert above > 0


def test_the_bounds_solve_the_score_equation() -> None:
    """Of the likelihood itself: the share of lost items that makes it largest is sought by a fine search."""
    n, lost, gained, z = 80, 9, 3, 1.959964

    def score(difference: float) -> float:
        shares = [step / 20_000 for step in range(1, 10_000)]
        shares = [share for share in shares if share + difference > 0 and 2 * share + difference < 1]
        likeliest = max(
            shares,
            key=lambda share: (
                gained * math.log(share + difference)
                + lost * math.log(share)
                + (n - gained - lost) * math.log(1 - 2 * share - difference)
            ),
        )
        return (gained - lost - n * difference) / math.sqrt(n * (2 * likeliest + difference - difference**2))

    flips = McNemar(n - lost - gained, lost, gained, 0)
    below, above = flips.reach(0.025)
    assert score(flips.value - below) == pytest.approx(z, abs=2e-3)
    assert score(flips.value + above) == pytest.approx(-z, abs=2e-3)


@pytest.mark.parametrize(("tail", "n", "chance"), [(0.00135, 1000, 0.01), (0.0228, 300, 0.02)])
def test_a_bound_far_out_misses_no_more_often_than_it_says(tail: float, n: int, chance: float) -> None:
    """Items are lost with this chance and none gained. The upper bound of the loss is summed over the binomial
    distribution: bounds of the normal kind, with one item added to each side, miss 2.5 to 7 times as often."""
    missed = 0.0
    for lost in range(n):
        below, _ = McNemar(n - lost, lost, 0, 0).reach(tail)
        if lost / n + below > chance:
            break
        missed += math.comb(n, lost) * chance**lost * (1 - chance) ** (n - lost)
    assert missed <= 1.2 * tail


def test_answers_that_stay_have_an_error() -> None:
    """That of seeing none of them change, with one item added to each side."""
    assert McNemar(30, 0, 0, 30).stderr == pytest.approx(math.sqrt(2) / 62)


FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
DOUBLING = tuple(2.0**-halvings for halvings in range(6, -1, -1))


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien-fleming", (4.877, 3.357, 2.680, 2.290, 2.031)),
        ("pocock", (2.438, 2.427, 2.410, 2.397, 2.386)),
    ],
)
def test_published_boundaries(spending: Spending, published: tuple[float, ...]) -> None:
    """Of five looks at 5 %, two-sided: D. M. Reboussin et al., Computations for group sequential boundaries using the
    Lan-DeMets spending function method, Controlled Clinical Trials 21 (2000)."""
    assert boundaries(0.05, FIFTHS, spending) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_all_of_the_error_is_spent_at_the_end_and_never_more(spending: Spending) -> None:
    spendings = [spent(0.05, fraction, spending) for fraction in DOUBLING]
    assert spendings == sorted(spendings)
    assert spendings[-1] == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("standard_errors", [1.96, 3.0])
def test_one_look_is_a_plain_test(standard_errors: float) -> None:
    assert level_of(1.959964) == pytest.approx(0.05, abs=1e-7)
    assert boundaries(level_of(standard_errors), (1.0,)) == pytest.approx((standard_errors,))


def test_a_late_look_asks_for_hardly_more_than_a_plain_test_and_an_early_one_for_much_more() -> None:
    found = boundaries(level_of(3.0), DOUBLING)
    assert found[-1] == pytest.approx(3.0, abs=0.001)
    assert list(found) == sorted(found, reverse=True)
    assert found[0] > 20
    assert boundaries(level_of(3.0), (1e-4, 1.0))[0] == math.inf, "its chance is no number in float64"


@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_walks_without_a_drift_cross_as_often_as_spent(spending: Spending) -> None:
    """The recursion against what it integrates: at each look, the share of walks that have crossed by then."""
    level, fractions = 0.1, (0.125, 0.25, 0.5, 1.0)
    walks, random = 200_000, np.random.default_rng(0)
    steps = np.sqrt(np.diff(fractions, prepend=0.0))
    places = np.cumsum(random.standard_normal((walks, len(fractions))) * steps, axis=1) / np.sqrt(fractions)
    crossed = np.maximum.accumulate(np.abs(places) > np.array(boundaries(level, fractions, spending)), axis=1)
    expected = np.array([spent(level, fraction, spending) for fraction in fractions])
    assert np.abs(crossed.mean(axis=0) - expected).max() < 5 * math.sqrt(level / walks)


@pytest.mark.parametrize(
    ("level", "fractions", "said"),
    [
        (0.0, (1.0,), "level is 0"),
        (1.0, (1.0,), "level is 1"),
        *((0.05, fractions, "growing") for fractions in [(), (0.5, 0.5), (0.0, 1.0), (0.5, 1.1), (1.0, 0.5)]),
    ],
)
def test_what_is_no_plan_is_refused(level: float, fractions: tuple[float, ...], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        boundaries(level, fractions)
