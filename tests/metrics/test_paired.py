"""Differences over the items that both sides have, with the error that pairing leaves."""

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from paired_items import numbers

from evalsvc.metrics.intervals import bend_of
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.paired import Paired, difference_of, spread_of
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.shares import standard_error

ITEMS = 400

Columns = tuple[list[float], list[float]]


def known(found: Paired | None) -> tuple[float, float | None, int, int, int]:
    """Value, standard error, and how many items are paired, and on one side only."""
    assert found is not None
    return found.value, found.stderr, found.n, found.n_only_a, found.n_only_b


@pytest.mark.parametrize("scale", [1, 2], ids=["right or wrong", "other numbers"])
def test_a_mean_by_hand(scale: int) -> None:
    """Differences -1, 0, 0, 1, 1: mean 1/5, variance 0.7."""
    sides = [numbers([scale * right for right in side]) for side in ([1, 0, 1, 0, 0], [0, 0, 1, 1, 1])]
    expected = pytest.approx(0.2 * scale), pytest.approx(scale * math.sqrt(0.7 / 5)), 5, 0, 0
    found = difference_of(sides[0], sides[1])
    assert known(found) == expected
    assert found is not None
    assert (found.flips is None) == (found.p is None) == (scale == 2)


class TestRatio:
    """Bits per byte: summed bits over summed bytes."""

    def measured(self, seed: int) -> tuple[Columns, Columns]:
        """Long items are harder, and their loss grows most: neither mean of means nor constant weights would do."""
        draw = random.Random(seed)
        sizes = [float(draw.randrange(5, 90)) for _ in range(ITEMS)]
        before = [size * (1 + 0.01 * size + draw.gauss(0, 0.3)) for size in sizes]
        rises = [size * (0.05 + 0.002 * size + draw.gauss(0, 0.1)) for size in sizes]
        return (before, sizes), ([bits + rise for bits, rise in zip(before, rises, strict=True)], sizes)

    def test_error_is_that_of_a_bootstrap(self) -> None:
        """Per-word losses of two tokenisations: each side has its own denominators."""
        before, (bits, sizes) = self.measured(seed=5)
        draw = random.Random(6)
        after = bits, [size + draw.randrange(20) for size in sizes]

        def ratio(side: Columns, chosen: Sequence[int]) -> float:
            return sum(side[0][i] for i in chosen) / sum(side[1][i] for i in chosen)

        def difference(chosen: Sequence[int]) -> float:
            return ratio(after, chosen) - ratio(before, chosen)

        found = difference_of(numbers(*before), numbers(*after))
        assert found is not None
        assert found.value == pytest.approx(difference(range(ITEMS)))
        spread = statistics.stdev(difference(draw.choices(range(ITEMS), k=ITEMS)) for _ in range(1000))
        assert found.stderr == pytest.approx(spread, rel=0.1)

    def test_against_nothing_it_is_the_error_of_the_ratio(self) -> None:
        _, (bits, sizes) = self.measured(seed=7)
        alone = ratio_of_sums(bits, sizes)
        assert alone is not None
        found = difference_of(numbers([0.0] * ITEMS, sizes), numbers(bits, sizes))
        assert known(found)[:2] == (pytest.approx(alone.value), pytest.approx(alone.stderr))

    def test_items_without_weight_do_not_count(self) -> None:
        sides = self.measured(seed=8)
        whole, longer = (
            difference_of(*(numbers(*([*column, *more] for column in side)) for side in sides)) for more in ((), (0.0,))
        )
        assert whole == longer
        assert difference_of(numbers([0.0], [0.0]), numbers([0.0], [0.0])) is None


def test_order_does_not_matter_and_what_one_side_lacks_is_counted() -> None:
    after = Numbers([(None, place) for place in (2, 1, 0)], [[1, 1, 1]])
    third = pytest.approx(1 / 3)
    assert known(difference_of(numbers([1, 0, 1, 0]), after)) == (third, third, 3, 1, 0)


def test_nothing_in_common() -> None:
    assert difference_of(numbers([1]), Numbers([(None, 5)], [[1]])) is None
    assert difference_of(numbers([]), numbers([])) is None


@pytest.mark.parametrize(
    ("before", "after", "value", "stderr"),
    [
        ([1], [0], -1.0, None),
        ([math.inf, 30.0], [math.inf, 30.0], 0.0, 0.0),
        ([1.0, 2.0], [math.nan, 2.0], math.nan, None),
        ([1.0, 2.0], [-math.inf, 2.0], -math.inf, None),
        ([1.0, 2.0], [math.inf, -math.inf], math.nan, None),
    ],
    ids=["one item", "infinite on both sides", "NaN", "infinite", "infinities of both signs"],
)
def test_where_there_is_no_error(before: list[float], after: list[float], value: float, stderr: float | None) -> None:
    found = known(difference_of(numbers(before), numbers(after)))
    assert found == (pytest.approx(value, nan_ok=True), stderr, len(before), 0, 0)


class TestGroups:
    """Items that belong together: captions of one image, windows of one document."""

    OWNERS = tuple(place // 5 for place in range(300))

    def test_the_error_is_over_groups(self) -> None:
        """The slow way: the mean over groups of equal size of their means."""
        draw = random.Random(3)
        before = [draw.gauss(5, 1) for _ in self.OWNERS]
        shifts = [draw.gauss(0, 1) for _ in range(60)]
        after = [x + shifts[owner] + draw.gauss(0, 0.1) for x, owner in zip(before, self.OWNERS, strict=True)]
        differences = [y - x for x, y in zip(before, after, strict=True)]
        means = [statistics.fmean(differences[start : start + 5]) for start in range(0, 300, 5)]
        found = difference_of(*(numbers(side, groups=self.OWNERS) for side in (before, after)))
        assert found is not None
        assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(60))
        assert (found.n, found.groups, found.spread and found.spread.dof) == (300, 60, pytest.approx(59))

    def test_answers_of_groups_have_no_exact_p(self) -> None:
        """McNemar's test counts every item as independent."""
        sides = [numbers([float(place % 7 > right) for place in range(300)], groups=self.OWNERS) for right in (0, 3)]
        found = difference_of(sides[0], sides[1])
        assert found is not None
        assert (found.p, found.flips, found.groups) == (None, None, 60)


def test_few_heavy_items_have_the_freedom_of_their_effective_number() -> None:
    """Weights 3, 1, 1, 1: 36 / 12 = 3."""
    found = spread_of(numbers([1.0, 2.0, 0.0, 5.0], [3.0, 1.0, 1.0, 1.0]))
    assert found is not None
    assert found.dof == pytest.approx(2)


def test_equal_weights_leave_the_number_of_items_and_their_skewness() -> None:
    values = [1.0, 2.0, 0.0, 5.0, 3.0]
    found = spread_of(numbers(values))
    assert found is not None
    expected = standard_error(values), 4, bend_of(values)
    assert (found.stderr, found.dof, found.bend) == pytest.approx(expected)


def test_a_sample_of_a_finite_benchmark_has_less_error() -> None:
    draw = random.Random(5)
    sides = [numbers([draw.gauss(0, 1) for _ in range(200)]) for _ in range(2)]
    whole, part = difference_of(sides[0], sides[1]), difference_of(sides[0], sides[1], drawn_from=1000)
    assert whole is not None
    assert part is not None
    assert part.stderr == pytest.approx((whole.stderr or 0) * math.sqrt(0.8))
