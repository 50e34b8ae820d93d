import math
import random
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


def test_groups_of_unequal_size_have_the_error_of_a_bootstrap_over_groups() -> None:
    draw = random.Random(1)
    groups = [
        [draw.gauss(center, 0.3) for _ in range(draw.randrange(1, 7))]
        for center in (draw.gauss(0, 1) for _ in range(150))
    ]
    values, owners = [v for group in groups for v in group], [at for at, group in enumerate(groups) for _ in group]
    means = []
    for _ in range(1500):
        drawn = draw.choices(groups, k=150)
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    found = ratio_of_sums(values, [1] * len(values), owners)
    assert found is not None
    assert found.stderr == pytest.approx(statistics.stdev(means), rel=0.08)
    assert (found.groups, found.independent) == (150, 150)


def test_groups_of_one_item_are_no_groups() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert ratio_of_sums(values, [1] * 4, "abcd") == ratio_of_sums(values, [1] * 4)
