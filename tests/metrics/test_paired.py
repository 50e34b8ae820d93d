"""Differences over the same items, and ratios of sums."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import fields

import pytest
from paired_items import numbers

from evalsvc.metrics.distance import Paired, difference_of, spread_of
from evalsvc.metrics.intervals import bend_of
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import Moments, Ratio, mean_of, perplexity, ratio_of_sums
from evalsvc.metrics.shares import share_stderr, standard_error

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
