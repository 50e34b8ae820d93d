"""Ratios of sums, shares, and accuracies above chance, with their errors and intervals."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import fields

import pytest

from evalsvc.metrics.intervals import Interval
from evalsvc.metrics.ratio import (
    Moments,
    Ratio,
    interval_of_centred,
    mean_of,
    perplexity,
    ratio_of_centred,
    ratio_of_sums,
)
from evalsvc.metrics.shares import share_stderr, standard_error

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


def test_perplexity() -> None:
    """That of a lost model is infinite, and no crash."""
    assert perplexity(Ratio(2.0, 0.1, 9)) == Ratio(math.exp(2), 0.1 * math.exp(2), 9)
    assert perplexity(Ratio(2.0, None, 1)) == Ratio(math.exp(2), None, 1)
    assert perplexity(Ratio(1e4, 1.0, 9)) == Ratio(math.inf, math.inf, 9)


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


def test_moments_of_none_of_one_and_of_equal_items() -> None:
    """Rounding may leave a negative sum of squares, whose root is no error at all."""
    assert Moments(0, 0, 0, 0, 0, 0).ratio() is None
    assert moments([6.0], [3.0]).ratio() == Ratio(2.0, None, 1)
    assert moments([0.1 * 3] * 7, [3.0] * 7).ratio().stderr == pytest.approx(0, abs=1e-8)


def test_mean_of_independent_values() -> None:
    assert mean_of([Ratio(1.0, 0.3, 10), Ratio(0.5, 0.4, 5)]) == Ratio(0.75, pytest.approx(0.25), 15)
    assert mean_of([Ratio(1.0, None, 1), Ratio(0.5, 0.1, 5)]) == Ratio(0.75, None, 6)
    assert mean_of([]) is None


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
    ],
)
def test_the_error_of_a_mean(values: list[float], expected: float | None) -> None:
    assert standard_error(values) == (None if expected is None else pytest.approx(expected))


def test_a_share_is_the_mean_of_its_items() -> None:
    for hits in (0, 13, 20):
        assert share_stderr(hits, 20) == pytest.approx(standard_error([1.0] * hits + [0.0] * (20 - hits)))
    assert share_stderr(1, 1) is None


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


def test_its_error_is_that_of_a_bootstrap() -> None:
    n, draw = 400, random.Random(4)
    base, values = forgetful(random.Random(10), n, 0.7, 0.8, 0.07)

    def retained(chosen: Sequence[int]) -> float:
        return (sum(values[i] for i in chosen) / n - CHANCE) / (sum(base[i] for i in chosen) / n - CHANCE)

    spread = statistics.stdev(retained(draw.choices(range(n), k=n)) for _ in range(1000))
    assert ratio_of_centred(base, values, CHANCE).stderr == pytest.approx(spread, rel=0.1)


def test_its_interval_by_hand() -> None:
    """The ends are where the difference x̄ − ρ ȳ is z standard errors from nothing."""
    base, values = forgetful(random.Random(21), 400, 0.7, 0.8, 0.07)
    found = interval_of_centred(base, values, CHANCE, level=0.9)
    for ratio in (found.low, found.high):
        parts = [x - CHANCE - ratio * (y - CHANCE) for y, x in zip(base, values, strict=True)]
        assert abs(statistics.fmean(parts)) == pytest.approx(1.6487 * standard_error(parts), rel=1e-3)


@pytest.mark.parametrize(
    ("n", "base_right", "kept", "gained"),
    [(200, 0.35, 0.6, 0.2), (100, 0.6, 0.3, 0.2)],
    ids=["weak base", "nothing left"],
)
def test_its_interval_covers_as_often_as_it_says(n: int, base_right: float, kept: float, gained: float) -> None:
    """Also where the base is two standard errors above chance, where a linearised interval misses on one side."""
    rng, draws = random.Random(n), 2000
    truth = (base_right * kept + (1 - base_right) * gained - CHANCE) / (base_right - CHANCE)
    missed = {"low": 0, "high": 0}
    for _ in range(draws):
        found = interval_of_centred(*forgetful(rng, n, base_right, kept, gained), CHANCE)
        missed["low"] += found is not None and truth < found.low
        missed["high"] += found is not None and truth > found.high
    share = {side: count / draws for side, count in missed.items()}
    assert 0.03 < share["low"] + share["high"] < 0.07
    assert all(0.005 < each < 0.05 for each in share.values())


def test_a_base_at_chance_has_no_ratio_and_one_that_may_be_has_no_interval() -> None:
    assert ratio_of_centred([1, 0], [1, 1], 0.5) is None
    assert ratio_of_centred([], [], 0.5) is None
    assert interval_of_centred([1, 0, 0, 0] * 9 + [1], [1, 0, 0, 0] * 9 + [0], CHANCE) is None
    assert interval_of_centred([1], [1], CHANCE) is None
