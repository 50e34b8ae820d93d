"""Items that are 1 or 0: the interval never contradicts the exact test, and misses as often as it says."""

import math

import pytest

from evalsvc.metrics.flips import Flips
from evalsvc.metrics.mcnemar import McNemar


@pytest.mark.parametrize("level", [0.9, 0.9973])
def test_interval_and_exact_test_say_the_same(level: float) -> None:
    for n in (20, 100, 500):
        for lost in range(15):
            for gained in range(15 - lost):
                flips = Flips(McNemar(n - lost - gained, lost, gained, 0))
                below, above = flips.reach((1 - level) / 2)
                covers = flips.value - below <= 0 <= flips.value + above
                assert covers == (flips.counts.p > 1 - level), (n, lost, gained)
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

    flips = Flips(McNemar(n - lost - gained, lost, gained, 0))
    below, above = flips.reach(0.025)
    assert score(flips.value - below) == pytest.approx(z, abs=2e-3)
    assert score(flips.value + above) == pytest.approx(-z, abs=2e-3)


@pytest.mark.parametrize(("tail", "n", "chance"), [(0.00135, 1000, 0.01), (0.0228, 300, 0.02)])
def test_a_bound_far_out_misses_no_more_often_than_it_says(tail: float, n: int, chance: float) -> None:
    """Items are lost with this chance and none gained. The upper bound of the loss is summed over the binomial
    distribution: bounds of the normal kind, with one item added to each side, miss 2.5 to 7 times as often."""
    missed = 0.0
    for lost in range(n):
        below, _ = Flips(McNemar(n - lost, lost, 0, 0)).reach(tail)
        if lost / n + below > chance:
            break
        missed += math.comb(n, lost) * chance**lost * (1 - chance) ** (n - lost)
    assert missed <= 1.2 * tail


def test_answers_that_stay_have_an_error() -> None:
    """That of seeing none of them change, with one item added to each side."""
    assert Flips(McNemar(30, 0, 0, 30)).stderr == pytest.approx(math.sqrt(2) / 62)
