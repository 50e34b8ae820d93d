"""Boundaries of repeated tests, against published ones and against walks."""

import math

import numpy as np
import pytest

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.sequential import boundaries, level_of, spent
from evalsvc.spec.looks import Spending

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
