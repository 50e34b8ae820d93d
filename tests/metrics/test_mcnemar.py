"""McNemar's test, the change of the share of right items with its bounds, and Holm's correction."""

import math

import pytest
from scipy.stats import binomtest

from evalsvc.metrics.mcnemar import Flips, McNemar, holm, mcnemar


def test_each_question_is_counted_once() -> None:
    counts = mcnemar([True, True, False, False, True], [True, False, True, False, False])
    assert counts == McNemar(both=1, only_a=2, only_b=1, neither=1)
    assert counts.n == 5


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 71), (700, 500)])
def test_the_p_value_is_that_of_the_sign_test(only_a: int, only_b: int) -> None:
    """A normal approximation would call 0 against 5 significant."""
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert McNemar(10, only_a, only_b, 10).p == pytest.approx(expected, rel=1e-9)


def test_questions_on_which_both_agree_say_nothing() -> None:
    assert McNemar(0, 3, 8, 0).p == McNemar(500, 3, 8, 4000).p


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        mcnemar([True], [True, False])


def test_holm_steps_down_and_keeps_the_order() -> None:
    """The published example: 4 tests, of which the third smallest takes over the second's larger product."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_leaves_out_what_was_not_tested() -> None:
    first, second, third = holm([0.01, math.nan, 0.04])
    assert (first, third) == (0.02, 0.04)
    assert math.isnan(second)


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
