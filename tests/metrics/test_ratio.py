"""Ratios of sums, perplexities and shares, with their errors."""

import math
import random
import statistics
from dataclasses import fields

import pytest

from evalsvc.metrics.ratio import Moments, Ratio, mean_of, perplexity, ratio_of_sums
from evalsvc.metrics.shares import share_stderr, standard_error


def test_equal_counts_give_the_standard_error_of_the_mean() -> None:
    means = [1.0, 2.0, 4.0, 8.0, 9.5]
    ratio = ratio_of_sums([7 * mean for mean in means], [7] * 5)
    assert ratio is not None
    assert ratio.value == pytest.approx(statistics.mean(means))
    assert ratio.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(5))
    assert ratio.n == 5


def test_stderr_by_hand() -> None:
    """R = 6/6, d = (-1, 1), so stderr² = 2/1 · 2/36."""
    assert ratio_of_sums([1, 5], [2, 4]) == Ratio(1.0, math.sqrt(2 * 2) / 6, 2)


def test_items_without_tokens_do_not_count() -> None:
    assert ratio_of_sums([1, 0, 5], [2, 0, 4]) == ratio_of_sums([1, 5], [2, 4])
    assert ratio_of_sums([0, 0], [0, 0]) is None
    assert ratio_of_sums([], []) is None


def test_one_item_has_no_error() -> None:
    assert ratio_of_sums([6], [3]) == Ratio(2.0, None, 1)
    assert perplexity(Ratio(2.0, None, 1)) == Ratio(math.exp(2), None, 1)


def test_perplexity() -> None:
    assert perplexity(Ratio(2.0, 0.1, 9)) == Ratio(math.exp(2), 0.1 * math.exp(2), 9)


def test_perplexity_of_a_lost_model_is_infinite_and_no_crash() -> None:
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
    assert whole is not None
    parts = [moments(sums[start : start + 70], counts[start : start + 70]) for start in (0, 70, 140)]
    added = Moments(*(sum(getattr(part, field.name) for part in parts) for field in fields(Moments)))
    found = added.ratio()
    assert found is not None
    assert (found.value, found.stderr, found.n) == pytest.approx((whole.value, whole.stderr, whole.n), rel=1e-10)


def test_moments_of_none_of_one_and_of_equal_items() -> None:
    """Rounding may leave a negative sum of squares, whose root is no error at all."""
    assert Moments(0, 0, 0, 0, 0, 0).ratio() is None
    assert moments([6.0], [3.0]).ratio() == Ratio(2.0, None, 1)
    equal = moments([0.1 * 3] * 7, [3.0] * 7).ratio()
    assert equal is not None
    assert equal.stderr == pytest.approx(0, abs=1e-8)


def test_mean_of_independent_values() -> None:
    assert mean_of([Ratio(1.0, 0.3, 10), Ratio(0.5, 0.4, 5)]) == Ratio(0.75, pytest.approx(0.25), 15)
    assert mean_of([Ratio(1.0, None, 1), Ratio(0.5, 0.1, 5)]) == Ratio(0.75, None, 6)
    assert mean_of([]) is None


def test_of_a_mean() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / 2)
    assert standard_error([1.0]) is None
    assert standard_error([1.0, math.inf]) is None


@pytest.mark.parametrize("right", [0, 1])
def test_items_that_are_all_alike_are_not_certain(right: int) -> None:
    """(20 + 2) / (20 + 4), of 24."""
    expected = math.sqrt(22 / 24 * 2 / 24 / 24)
    assert standard_error([float(right)] * 20) == pytest.approx(expected)
    assert share_stderr(20 * right, 20) == pytest.approx(expected)
    assert ratio_of_sums([right] * 20, [1] * 20) == Ratio(float(right), pytest.approx(expected), 20)


def test_numbers_that_are_no_shares_may_be_alike() -> None:
    assert standard_error([0.5] * 20) == 0.0
    assert ratio_of_sums([2.0] * 20, [2] * 20) == Ratio(1.0, 0.0, 20)


def test_a_share_is_the_mean_of_its_items() -> None:
    values = [1.0] * 13 + [0.0] * 7
    assert share_stderr(13, 20) == pytest.approx(standard_error(values))
    assert share_stderr(1, 1) is None


def test_the_error_is_over_groups_by_hand() -> None:
    """Mean 3, sums of deviations -3 and 3, so stderr² = 2/1 · 18/9."""
    assert ratio_of_sums([1.0, 2.0, 6.0], [1] * 3, "aab") == Ratio(3.0, pytest.approx(2), 3, 2)


def test_groups_of_one_item_are_no_groups() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert ratio_of_sums(values, [1] * 4, "abcd") == ratio_of_sums(values, [1] * 4)
