"""Ratios of sums, shares, McNemar's test and Holm's correction, and boundaries of repeated tests."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import fields

import pytest
from scipy.stats import binomtest

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.intervals import Interval
from evalsvc.metrics.mcnemar import McNemar, holm, mcnemar
from evalsvc.metrics.ratio import (
    Moments,
    Ratio,
    interval_of_centred,
    mean_of,
    perplexity,
    ratio_of_centred,
    ratio_of_sums,
)
from evalsvc.metrics.sequential import boundaries, level_of, spent
from evalsvc.metrics.shares import share_stderr, standard_error
from evalsvc.spec.looks import Spending

MEANS = [1.0, 2.0, 4.0, 8.0, 9.5]
STDERR = statistics.stdev(MEANS) / math.sqrt(5)
ALIKE = math.sqrt(22 / 24 * 2 / 24 / 24)
"""Of 20 answers that are all right, or all wrong: (20 + 2) / (20 + 4), of 24."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([7 * mean for mean in MEANS], [7] * 5), Ratio(4.9, pytest.approx(STDERR), 5)),
        (([1, 5], [2, 4]), Ratio(1.0, math.sqrt(2 * 2) / 6, 2)),  # d = (-1, 1), so stderr² = 2/1 · 2/36
        (([1, 0, 5], [2, 0, 4]), Ratio(1.0, math.sqrt(2 * 2) / 6, 2)),
        (([6], [3]), Ratio(2.0, None, 1)),
        (([0, 0], [0, 0]), None),
        (([], []), None),
        (([1] * 20, [1] * 20), Ratio(1.0, pytest.approx(ALIKE), 20)),
        (([0] * 20, [1] * 20), Ratio(0.0, pytest.approx(ALIKE), 20)),
        (([2.0] * 20, [2] * 20), Ratio(1.0, 0.0, 20)),  # numbers that are no shares may be alike
        (([1.0, 2.0, 6.0], [1] * 3, "aab"), Ratio(3.0, pytest.approx(2), 3, 2)),  # sums -3 and 3: 2/1 · 18/9
        ((MEANS, [1] * 5, "abcde"), Ratio(4.9, pytest.approx(STDERR), 5)),  # groups of one item are no groups
    ],
    ids=["equal counts", "by hand", "no tokens", "one", "all 0", "none", "right", "wrong", "alike", "groups", "alone"],
)
def test_a_ratio_of_sums(arguments: tuple[Sequence[float], ...], expected: Ratio | None) -> None:
    assert ratio_of_sums(*arguments) == expected


def test_what_is_made_of_ratios() -> None:
    """The perplexity of a lost model is infinite, and no crash; the mean is of independent values."""
    assert perplexity(Ratio(2.0, 0.1, 9)) == Ratio(math.exp(2), 0.1 * math.exp(2), 9)
    assert perplexity(Ratio(2.0, None, 1)) == Ratio(math.exp(2), None, 1)
    assert perplexity(Ratio(1e4, 1.0, 9)) == Ratio(math.inf, math.inf, 9)
    assert mean_of([Ratio(1.0, 0.3, 10), Ratio(0.5, 0.4, 5)]) == Ratio(0.75, pytest.approx(0.25), 15)
    assert mean_of([Ratio(1.0, None, 1), Ratio(0.5, 0.1, 5)]) == Ratio(0.75, None, 6)
    assert mean_of([]) is None


def moments(sums: list[float], counts: list[float]) -> Moments:
    """Of items, one by one."""
    rows = [(1, c, x, c * c, c * x, x * x) for x, c in zip(sums, counts, strict=True) if c]
    return Moments(*(float(sum(column)) for column in zip(*rows, strict=True)))


def test_moments_give_the_same_ratio_and_add_up() -> None:
    """Shards keep moments in the place of items; their sums must not depend on how the items were cut."""
    draw = random.Random(3)
    counts = [float(draw.randrange(4)) for _ in range(200)]
    sums = [count * (3 + draw.gauss(0, 0.4)) for count in counts]
    whole = ratio_of_sums(sums, counts)
    parts = [moments(sums[start : start + 70], counts[start : start + 70]) for start in (0, 70, 140)]
    found = Moments(*(sum(getattr(part, field.name) for part in parts) for field in fields(Moments))).ratio()
    assert (found.value, found.stderr, found.n) == pytest.approx((whole.value, whole.stderr, whole.n), rel=1e-10)
    assert Moments(0, 0, 0, 0, 0, 0).ratio() is None
    assert moments([6.0], [3.0]).ratio() == Ratio(2.0, None, 1)
    equal = moments([0.1 * 3] * 7, [3.0] * 7).ratio()
    assert equal.stderr == pytest.approx(0, abs=1e-8), "rounding may leave a negative sum of squares, which has no root"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (MEANS, STDERR),
        ([1.0, 3.0], 1.0),
        ([1.0], None),
        ([1.0, math.inf], None),
        ([1.0] * 20, ALIKE),
        ([0.0] * 20, ALIKE),
        ([0.5] * 20, 0),
        ([1.0] * 13 + [0.0] * 7, math.sqrt(0.65 * 0.35 / 19)),
    ],
)
def test_the_error_of_a_mean(values: list[float], expected: float | None) -> None:
    assert standard_error(values) == (None if expected is None else pytest.approx(expected))
    if set(values) <= {0.0, 1.0}:  # a share is the mean of its items
        assert share_stderr(sum(values), len(values)) == pytest.approx(expected)


CHANCE = 0.25


def forgetful(
    rng: random.Random, n: int, base_right: float, kept: float, gained: float
) -> tuple[list[float], list[float]]:
    """Answers of a base, and of a checkpoint that keeps a part of what it gets right and gains a part of the rest."""
    base = [float(rng.random() < base_right) for _ in range(n)]
    return base, [float(rng.random() < (kept if right else gained)) for right in base]


def test_what_is_left_above_chance_by_hand() -> None:
    """3/4 before and 1/2 after, at chance 1/4: half of what was above chance is left."""
    found = ratio_of_centred([1, 1, 1, 0], [1, 1, 0, 0], CHANCE)
    parts = [1 - 0.25 - 0.5 * (1 - 0.25), 1 - 0.25 - 0.5 * (1 - 0.25), -0.25 - 0.5 * 0.75, -0.25 + 0.5 * 0.25]
    assert found == Ratio(0.5, pytest.approx(standard_error([part / 0.5 for part in parts])), 4)
    base, one = [1.0] * 70 + [0.0] * 30, pytest.approx(1)
    assert interval_of_centred(base, base, CHANCE) == Interval(one, one, 0.95)
    base, values = forgetful(random.Random(21), 400, 0.7, 0.8, 0.07)
    found = interval_of_centred(base, values, CHANCE, level=0.9)
    for ratio in (found.low, found.high):  # where the difference x̄ − ρ ȳ is z standard errors from nothing
        parts = [x - CHANCE - ratio * (y - CHANCE) for y, x in zip(base, values, strict=True)]
        assert abs(statistics.fmean(parts)) == pytest.approx(1.6487 * standard_error(parts), rel=1e-3)


def test_its_error_is_that_of_a_bootstrap() -> None:
    n, draw = 400, random.Random(4)
    base, values = forgetful(random.Random(10), n, 0.7, 0.8, 0.07)

    def retained(chosen: Sequence[int]) -> float:
        return (sum(values[i] for i in chosen) / n - CHANCE) / (sum(base[i] for i in chosen) / n - CHANCE)

    spread = statistics.stdev(retained(draw.choices(range(n), k=n)) for _ in range(1000))
    assert ratio_of_centred(base, values, CHANCE).stderr == pytest.approx(spread, rel=0.1)


def test_a_base_at_chance_has_no_ratio_and_one_that_may_be_has_no_interval() -> None:
    assert ratio_of_centred([1, 0], [1, 1], 0.5) is None
    assert ratio_of_centred([], [], 0.5) is None
    assert interval_of_centred([1, 0, 0, 0] * 9 + [1], [1, 0, 0, 0] * 9 + [0], CHANCE) is None
    assert interval_of_centred([1], [1], CHANCE) is None


def test_each_question_is_counted_once() -> None:
    counts = mcnemar([True, True, False, False, True], [True, False, True, False, False])
    assert counts == McNemar(both=1, only_a=2, only_b=1, neither=1)
    assert counts.n == 5
    with pytest.raises(ValueError, match="longer"):
        mcnemar([True], [True, False])
    # Answers that stay have the error of seeing none of them change, with one item added to each side.
    assert McNemar(30, 0, 0, 30).stderr == pytest.approx(math.sqrt(2) / 62)


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


FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
DOUBLING = tuple(2.0**-halvings for halvings in range(6, -1, -1))


@pytest.mark.parametrize(
    ("spending", "published"),
    [("obrien-fleming", (4.877, 3.357, 2.680, 2.290, 2.031)), ("pocock", (2.438, 2.427, 2.410, 2.397, 2.386))],
)
def test_published_boundaries(spending: Spending, published: tuple[float, ...]) -> None:
    """Of five looks at 5 %, two-sided: D. M. Reboussin et al., Computations for group sequential boundaries using the
    Lan-DeMets spending function method, Controlled Clinical Trials 21 (2000)."""
    assert boundaries(0.05, FIFTHS, spending) == pytest.approx(published, abs=5e-4)
    assert spent(0.05, 1.0, spending) == pytest.approx(0.05, rel=1e-9), "all of the error is spent at the end"


def test_a_late_look_asks_for_hardly_more_than_a_plain_test_and_an_early_one_for_much_more() -> None:
    found = boundaries(level_of(3.0), DOUBLING)
    assert found[-1] == pytest.approx(3.0, abs=0.001)
    assert list(found) == sorted(found, reverse=True)
    assert found[0] > 20
    assert boundaries(level_of(3.0), (1e-4, 1.0))[0] == math.inf, "its chance is no number in float64"
    assert level_of(1.959964) == pytest.approx(0.05, abs=1e-7)
    for standard_errors in (1.96, 3.0):
        assert boundaries(level_of(standard_errors), (1.0,)) == pytest.approx((standard_errors,)), "one look is plain"


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
