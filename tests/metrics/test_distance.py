"""How far two values are apart, by which standard error and what that says; and the items that values are made of."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from metric_items import numbers

from evalsvc.metrics.distance import Distance, Judgement, difference_of, distance, judge, spread_of
from evalsvc.metrics.intervals import MIN_ITEMS, Spread, bend_of
from evalsvc.metrics.item_numbers import (
    Linear,
    Numbers,
    aligned,
    combined,
    finite_factor,
    item_numbers,
    keep_shares,
    linear_mean,
    linear_of,
)
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.protocol import Direction, MetricValue, Protocol

A, B = Ratio(1.0, 0.3, 40), Ratio(1.5, 0.4, 30)


def known(found: Distance) -> tuple[float, float | None, str, int, tuple[str, ...]]:
    """Value, standard error, where that is from, the number of items, and which sides lack an error."""
    return found.value, found.stderr, found.basis, found.n, found.lacking


def of_items(before: Sequence[float], after: Sequence[float]) -> Distance:
    """The distance of two means of these items."""
    ratios = [Ratio(statistics.fmean(values), standard_error(values), len(values)) for values in (before, after)]
    return distance(ratios[0], ratios[1], (numbers(before), numbers(after)))


class TestBasis:
    def test_independent_values_have_the_error_of_both(self) -> None:
        found = distance(A, B)
        assert known(found) == (0.5, pytest.approx(0.5), "unpaired", 30, ())
        assert found.spread.dof == pytest.approx(0.25**2 / (0.09**2 / 39 + 0.16**2 / 29)), "Welch's"
        assert found.why_no_error("A", "B") == ""
        assert distance(A, B, (numbers([1]), numbers([1]))).basis == "unpaired", "one pair has no error"
        assert distance(Ratio(1.0, 0.0, 40), Ratio(1.5, 0.0, 30)).spread == Spread(0.0, 29)

    @pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_the_error_of_one_side_is_no_error_of_the_difference(self, unknown: float | None, side: int) -> None:
        sides = [A, B]
        sides[side] = Ratio(sides[side].value, unknown, 30)
        found = distance(*sides)
        assert known(found) == (0.5, None, "none", 30, ("ab"[side],))
        other = "BA"[side]
        assert found.why_no_error("A", "B").startswith(f"only {other} has a standard error, and the error of one")

    @pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
    def test_neither_side_has_an_error(self, value: float) -> None:
        """Equal values are apart by nothing."""
        found = distance(Ratio(1.0, None, 1), Ratio(3.0, None, 1))
        assert known(found) == (2.0, None, "none", 1, ("a", "b"))
        assert found.why_no_error("A", "B") == "neither A nor B has a standard error"
        assert distance(Ratio(value, None, 1), Ratio(value, None, 1)).value == 0.0

    def test_an_item_that_is_infinite_on_both_sides_leaves_the_others(self) -> None:
        """Both values are infinite, and 0 would deny what the other items say, whose error stood next to the 0."""
        infinite = Ratio(-math.inf, None, 2)
        found = distance(infinite, infinite, (numbers([-math.inf, 0.0]), numbers([-math.inf, 1.0])))
        assert known(found) == (0.5, 0.5, "paired", 2, ())

    def test_items_that_one_side_lacks_leave_the_others_paired(self) -> None:
        """One lost item of a thousand is no reason to compare as if nothing were shared."""
        draw = random.Random(4)
        before = [draw.gauss(0, 1) for _ in range(1000)]
        after = [value + draw.gauss(0.01, 0.05) for value in before[:-1]]
        found = of_items(before, after)
        assert (found.basis, found.n, found.n_only_a, found.n_only_b) == ("paired", 999, 1, 0)
        assert found.value == pytest.approx(statistics.fmean(y - x for x, y in zip(before, after, strict=False)))
        assert found.stderr == pytest.approx(0.05 / math.sqrt(999), rel=0.1)


class TestClaims:
    """What a distance says, and where it says nothing."""

    def test_few_items_make_none(self) -> None:
        draw = random.Random(1)
        values = [draw.gauss(0, 1) for _ in range(MIN_ITEMS)]
        nothing = [0.0] * MIN_ITEMS
        enough, few = of_items(nothing, values), of_items(nothing[1:], values[1:])
        assert enough.interval() is not None
        assert (few.interval(), few.p_value(), few.verdict(0.95, "lower")) == (None, None, None)
        assert few.why_no_error("A", "B") == f"{MIN_ITEMS - 1} items are too few, an interval needs {MIN_ITEMS}"
        assert enough.why_no_error("A", "B") == ""

    @pytest.mark.parametrize("grouped", [False, True])
    def test_few_items_of_unpaired_values_make_none(self, grouped: bool) -> None:
        """Groups count, and not the items in them."""
        many = Ratio(9.0, 0.1, 1000)
        few, enough = (
            Ratio(0.0, 0.1, 300, independent) if grouped else Ratio(0.0, 0.1, independent)
            for independent in (MIN_ITEMS - 1, MIN_ITEMS)
        )
        assert distance(few, many).verdict(0.95, "lower") is None
        assert distance(enough, many).verdict(0.95, "lower") == "worse"

    @pytest.mark.parametrize(("n", "expected"), [(5, "indistinguishable"), (6, "worse")])
    def test_a_constant_shift_is_tested_by_its_signs(self, n: int, expected: Judgement) -> None:
        """A standard error of zero would make every difference certain, of two items as well."""
        found = of_items([0.1 * place for place in range(n)], [0.1 * place + 0.3 for place in range(n)])
        assert (found.interval(), found.p) == (None, pytest.approx(2.0 ** (1 - n)))
        assert found.verdict(0.95, "lower") == expected
        equal = of_items([0.5, 1.5, 2.5], [0.5, 1.5, 2.5])
        assert (equal.p, equal.verdict(0.95, "lower")) == (1.0, "indistinguishable")

    @pytest.mark.parametrize(("lost", "verdict"), [(4, "indistinguishable"), (5, "indistinguishable"), (6, "worse")])
    def test_right_or_wrong_items_are_judged_by_the_exact_test(self, lost: int, verdict: Judgement) -> None:
        """Four answers lost and none gained were "worse" beside an exact p of 0.125."""
        found = of_items([1.0] * 200, [0.0] * lost + [1.0] * (200 - lost))
        assert found.p == pytest.approx(2.0 ** (1 - lost))
        assert found.verdict(0.95, "higher") == verdict
        assert found.interval().covers_zero == (verdict == "indistinguishable")

    def test_one_item_that_has_all_the_weight_makes_none(self) -> None:
        weights, draw = [1e9] + [1.0] * 19, random.Random(1)
        sides = [[weight * draw.gauss(0, 1) for weight in weights] for _ in range(2)]
        ratios = [ratio_of_sums(side, weights) for side in sides]
        found = distance(ratios[0], ratios[1], (numbers(sides[0], weights), numbers(sides[1], weights)))
        assert (found.interval(), found.p_value()) == (None, None)
        assert found.why_no_error("A", "B").startswith("one item has nearly all of the weight")


class TestPerplexity:
    """A loss and its perplexity are the same number, and get the same verdict."""

    def test_says_what_the_loss_says(self) -> None:
        draw = random.Random(2)
        for shift in (0.0, 0.01, 0.02, 0.05):
            counts = [float(draw.randrange(5, 40)) for _ in range(200)]
            before = [count * draw.gauss(3, 0.5) for count in counts]
            after = [x + count * draw.gauss(shift, 0.1) for x, count in zip(before, counts, strict=True)]
            losses = [ratio_of_sums(side, counts) for side in (before, after)]
            pairs = numbers(before, counts), numbers(after, counts)
            loss = distance(losses[0], losses[1], pairs)
            found = distance(perplexity(losses[0]), perplexity(losses[1]), pairs, unit="perplexity")
            assert found.verdict(0.95, "lower") == loss.verdict(0.95, "lower")
            assert found.p_value() == pytest.approx(loss.p_value())
            of_loss, interval, base = loss.interval(), found.interval(), math.exp(losses[0].value)
            ends = [base * math.expm1(end) for end in (of_loss.low, of_loss.high)]
            assert [interval.low, interval.high] == pytest.approx(ends)

    def test_without_pairs_on_the_logarithms_too(self) -> None:
        losses = Ratio(3.0, 0.02, 200), Ratio(3.1, 0.03, 200)
        found = distance(*map(perplexity, losses), unit="perplexity")
        assert found.p_value() == pytest.approx(distance(*losses).p_value())
        assert (found.basis, found.value) == ("unpaired", pytest.approx(math.exp(3.1) - math.exp(3.0)))
        lost = distance(Ratio(20.0, 1.0, 50), Ratio(math.inf, None, 50), unit="perplexity")
        assert (lost.value, lost.basis) == (math.inf, "none"), "infinite ones are compared as they are"

    def test_items_that_one_side_lacks_are_left_out(self) -> None:
        draw = random.Random(3)
        before, after = ([draw.gauss(3, 0.5) for _ in range(n)] for n in (20, 19))
        a, b = (Ratio(statistics.fmean(side), standard_error(side), len(side)) for side in (before, after))
        pairs = numbers(before), numbers(after)
        found = distance(perplexity(a), perplexity(b), pairs, unit="perplexity")
        assert found.value == pytest.approx(math.exp(a.value) * math.expm1(distance(a, b, pairs).value))


@pytest.mark.parametrize(
    ("difference", "p", "direction", "expected"),
    [
        (0.2, 0.3, "lower", "indistinguishable"),
        (0.2, 0.05, "lower", "worse"),
        (0.2, 0.01, "higher", "better"),
        (-0.2, 0.01, "lower", "better"),
        (-0.2, 0.01, "higher", "worse"),
        (-0.2, 0.01, "none", "different"),
        (-0.2, 0.2, "none", "indistinguishable"),
        (math.nan, 0.0, "lower", "indistinguishable"),
    ],
)
def test_says_what_b_is(difference: float, p: float, direction: Direction, expected: Judgement) -> None:
    assert judge(difference, p, 0.95, direction) == expected


ITEMS = 400

Columns = tuple[list[float], list[float]]


def paired(found: Distance) -> tuple[float, float | None, int, int, int]:
    """Value, standard error, and how many items are paired, and on one side only."""
    return found.value, found.stderr, found.n, found.n_only_a, found.n_only_b


@pytest.mark.parametrize("scale", [1, 2], ids=["right or wrong", "other numbers"])
def test_a_mean_by_hand(scale: int) -> None:
    """Differences -1, 0, 0, 1, 1: mean 1/5, variance 0.7."""
    sides = [numbers([scale * right for right in side]) for side in ([1, 0, 1, 0, 0], [0, 0, 1, 1, 1])]
    found = difference_of(sides[0], sides[1])
    assert paired(found) == (pytest.approx(0.2 * scale), pytest.approx(scale * math.sqrt(0.7 / 5)), 5, 0, 0)
    assert (found.flips is None) == (found.p is None) == (scale == 2)
    assert distance(A, B, (sides[0], sides[1])).basis == "paired", "pairs come first"


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

        def difference(chosen: Sequence[int]) -> float:
            ratios = [sum(side[0][i] for i in chosen) / sum(side[1][i] for i in chosen) for side in (before, after)]
            return ratios[1] - ratios[0]

        found = difference_of(numbers(*before), numbers(*after))
        assert found.value == pytest.approx(difference(range(ITEMS)))
        spread = statistics.stdev(difference(draw.choices(range(ITEMS), k=ITEMS)) for _ in range(1000))
        assert found.stderr == pytest.approx(spread, rel=0.1)

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
    assert paired(difference_of(numbers([1, 0, 1, 0]), after)) == (third, third, 3, 1, 0)
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
    found = paired(difference_of(numbers(before), numbers(after)))
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
        assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(60))
        assert (found.n, found.groups, found.spread.dof) == (300, 60, pytest.approx(59))

    def test_answers_of_groups_have_no_exact_p(self) -> None:
        """McNemar's test counts every item as independent."""
        sides = [numbers([float(place % 7 > right) for place in range(300)], groups=self.OWNERS) for right in (0, 3)]
        found = difference_of(sides[0], sides[1])
        assert (found.p, found.flips, found.groups) == (None, None, 60)


def test_the_freedom_of_a_value_is_that_of_its_effective_number_of_items() -> None:
    """Weights 3, 1, 1, 1: 36 / 12 = 3. Equal weights leave the number of items, and their skewness."""
    assert spread_of(numbers([1.0, 2.0, 0.0, 5.0], [3.0, 1.0, 1.0, 1.0])).dof == pytest.approx(2)
    values = [1.0, 2.0, 0.0, 5.0, 3.0]
    found = spread_of(numbers(values))
    assert (found.stderr, found.dof, found.bend) == pytest.approx((standard_error(values), 4, bend_of(values)))


def mean_of_answers(answers: Sequence[float], name: str = "a") -> Linear:
    return linear_mean([(name, index) for index in range(len(answers))], answers, [1] * len(answers))


def test_shares_have_the_value_and_the_error_of_a_ratio() -> None:
    rng = random.Random(1)
    counts = [rng.randint(1, 40) for _ in range(60)]
    sums = [count * rng.gauss(3, 1) for count in counts]
    found, expected = linear_mean([("a", index) for index in range(60)], sums, counts), ratio_of_sums(sums, counts)
    assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr))
    shares = list(found.shares().values())
    assert statistics.fmean(shares) == pytest.approx(expected.value, abs=1e-6)
    assert standard_error(shares) == pytest.approx(expected.stderr, rel=1e-5)
    assert set(linear_mean([("a", 0), ("a", 1), ("a", 2)], [1.0, 0.0, 4.0], [1, 0, 2]).parts) == {("a", 0), ("a", 2)}
    assert linear_mean([("a", 0), ("a", 1)], [1.0, 0.0], [1, 0]) is None, "one item has no error"
    assert linear_mean([("a", 0), ("a", 1)], [math.inf, 0.0], [1, 1]) is None


def test_shares_are_rounded_to_as_many_decimals_and_put_into_their_items() -> None:
    """Answers stay right or wrong, so that McNemar's exact test applies; and what is zero but for rounding is zero."""
    answers = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    mean = mean_of_answers(answers)
    assert list(combined(mean.value, [(1.0, mean)]).shares().values()) == answers
    shares = Linear(123.0, {("a", 0): 87.0, ("a", 1): -87.0}).shares()
    assert shares == {("a", 0): pytest.approx(246.03658, abs=1e-4), ("a", 1): pytest.approx(-0.03658, abs=1e-4)}
    assert all(share == round(share, 4) for share in shares.values())
    items: list[dict[str, Any]] = [{"benchmark": name, "index": 0} for name in "ab"] + [{"benchmark": "a", "index": 1}]
    assert keep_shares("task/mean", mean_of_answers([0.25, 0.75]), items) == ("task/mean",)
    assert [item.get("task/mean") for item in items] == [0.25, None, 0.75]


def metric(*items: str, value: float = 0.0, unit: str = "", **more: Any) -> MetricValue:
    return MetricValue("a/x", value, None, 4, unit, "lower", Protocol({}), None, items, **more)


def test_a_perplexity_is_linearised_by_its_loss() -> None:
    losses = [6.0, 7.0, 5.0, 9.0]
    items = [{"benchmark": "a", "index": index, "nll": nll, "words": 3} for index, nll in enumerate(losses)]
    value = perplexity(ratio_of_sums(losses, [3] * 4))
    found = linear_of(metric("nll", "words", unit="perplexity", value=value.value), items)
    assert (found.value, found.stderr) == pytest.approx((value.value, value.stderr))
    assert linear_of(metric("nll", "words", unit="perplexity", value=math.inf), items) is None
    assert linear_of(metric(), items) is None, "made of no items"
    # A sample has the factor of a finite population.
    items = [{"benchmark": "a", "index": index, "x": float(index % 2)} for index in range(30)]
    whole, part = linear_of(metric("x"), items), linear_of(metric("x", drawn_from=40), items)
    assert part.stderr == pytest.approx(0.5 * whole.stderr)
    assert (finite_factor(30, 40), finite_factor(30, None), finite_factor(30, 30)) == (0.5, 1, 0)
    sides = [numbers([math.sin(scale * place) for place in range(200)]) for scale in (1, 2)]
    apart = [difference_of(*sides, drawn_from=total).stderr for total in (None, 1000)]
    assert apart[1] == pytest.approx(apart[0] * math.sqrt(0.8))


def test_the_paired_error_is_that_of_the_weighted_paired_differences() -> None:
    """Of the mean over benchmarks, by the slow reference: benchmark by benchmark, then √Σ (w s)²."""
    rng = random.Random(3)
    a = {"x": [rng.random() for _ in range(20)], "y": [rng.random() for _ in range(50)]}
    b = {name: [value + rng.gauss(0.1, 0.1) for value in values] for name, values in a.items()}
    ratios, sides = [], []
    for side in (a, b):
        members = [mean_of_answers(answers, name) for name, answers in side.items()]
        whole = combined(statistics.fmean(member.value for member in members), [(0.5, member) for member in members])
        shares = whole.shares()
        ratios.append(Ratio(whole.value, whole.stderr, len(shares)))
        sides.append(Numbers(list(shares), [list(shares.values())]))
    parts = [standard_error([v - u for u, v in zip(a[name], b[name], strict=True)]) or 0 for name in a]
    assert distance(*ratios, tuple(sides)).stderr == pytest.approx(math.hypot(*parts) / 2, rel=1e-5)


def test_the_numbers_of_a_metrics_items() -> None:
    """Two benchmarks of one task both have an item 0; shares are of items of every benchmark."""
    rows: list[dict[str, Any]] = [
        {"benchmark": name, "index": 0, "acc": place, "t/mean": place} for place, name in enumerate(("arc", "piqa"))
    ]
    assert item_numbers(rows, "piqa/acc", ["acc"]) == Numbers([("piqa", 0)], [[1.0]])
    assert item_numbers(rows, "t/mean", ["t/mean"]) == Numbers([("arc", 0), ("piqa", 0)], [[0.0, 1.0]])
    # Items come out of JSON, where NaN and infinities are strings; without the key or an index they do not count.
    rows = [
        {"index": 0, "acc": 1},
        {"index": 1, "acc": "-Infinity"},
        {"index": 2},
        {"index": 3, "acc": None},
        {"acc": 1},
    ]
    assert item_numbers(rows, "arc/acc", ["acc"]) == Numbers([(None, 0), (None, 1)], [[1.0, -math.inf]])
    rows = [{"index": place, "x": float(place), "image": place // 2} for place in range(6)]
    rows += [{"index": 6, "x": 1.0}, {"index": 7, "x": 1.0}]
    groups = item_numbers(rows, "t/x", ["x"], "image").groups
    assert len(set(groups)) == 5, "a row that names none is a group of its own"


def test_pairs_in_another_order_are_the_same_pairs() -> None:
    """One side's shards may be merged in another order; by position every item would meet a stranger."""
    a = Numbers([(None, 0), (None, 1), (None, 2)], [[1.0, 2.0, 3.0]])
    b = Numbers([(None, 9), (None, 2), (None, 1)], [[9.0, 30.0, 20.0]], ["c", "b", "a"])
    common = [(None, 1), (None, 2)]
    assert aligned(a, b) == (Numbers(common, [[2.0, 3.0]]), Numbers(common, [[20.0, 30.0]], ["a", "b"]))
