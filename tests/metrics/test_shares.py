import math
import statistics

import pytest

from evalsvc.metrics.ratio import Ratio, ratio_of_sums
from evalsvc.metrics.shares import share_stderr, standard_error


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
