import math
import random
import statistics
from dataclasses import fields

import pytest

from evalsvc.metrics.ratio import Moments, Ratio, mean_of, perplexity, ratio_of_sums


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
