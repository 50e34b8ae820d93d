"""How far two values are apart: which standard error that has, where it comes from, and what the distance says."""

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from paired_items import numbers

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.distance import Distance, Judgement, distance, judge
from evalsvc.metrics.intervals import MIN_ITEMS, Spread
from evalsvc.metrics.ratio import Ratio, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.protocol import Direction

A, B = Ratio(1.0, 0.3, 40), Ratio(1.5, 0.4, 30)


def known(found: Distance) -> tuple[float, float | None, str, int, tuple[str, ...]]:
    """Value, standard error, where that is from, the number of items, and which sides lack an error."""
    return found.value, found.stderr, found.basis, found.n, found.lacking


def of_items(before: Sequence[float], after: Sequence[float]) -> Distance:
    """The distance of two means of these items."""
    ratios = [Ratio(statistics.fmean(values), standard_error(values), len(values)) for values in (before, after)]
    return distance(ratios[0], ratios[1], (numbers(before), numbers(after)))


class TestBasis:
    def test_pairs_come_first(self) -> None:
        found = distance(A, B, (numbers([0, 1, 2]), numbers([1, 1, 3])))
        assert known(found) == (0.5, pytest.approx(1 / 3), "paired", 3, ())

    def test_independent_values_have_the_error_of_both(self) -> None:
        found = distance(A, B)
        assert known(found) == (0.5, pytest.approx(0.5), "unpaired", 30, ())
        assert found.spread is not None
        assert found.spread.dof == pytest.approx(0.25**2 / (0.09**2 / 39 + 0.16**2 / 29)), "Welch's"
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

    def test_neither_side_has_an_error(self) -> None:
        found = distance(Ratio(1.0, None, 1), Ratio(3.0, None, 1))
        assert known(found) == (2.0, None, "none", 1, ("a", "b"))
        assert found.why_no_error("A", "B") == "neither A nor B has a standard error"
        assert distance(A, B).why_no_error("A", "B") == ""

    @pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
    def test_equal_values_are_apart_by_nothing(self, value: float) -> None:
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
        assert found.interval() is None
        assert found.p == pytest.approx(2.0 ** (1 - n))
        assert found.verdict(0.95, "lower") == expected

    def test_equal_values_are_indistinguishable(self) -> None:
        found = of_items([0.5, 1.5, 2.5], [0.5, 1.5, 2.5])
        assert (found.p, found.verdict(0.95, "lower")) == (1.0, "indistinguishable")

    def test_interval_and_p_value_say_the_same(self) -> None:
        draw = random.Random(7)
        for n in (8, 12, 40):
            for shift in (0.2, 0.5, 0.9, 1.4):
                found = of_items([0.0] * n, [draw.lognormvariate(0, 1) * shift - 1 for _ in range(n)])
                interval, p = found.interval(0.8), found.p_value()
                assert interval is not None
                assert p is not None
                assert interval.covers_zero == (p > 0.2)
                assert interval.low < found.value < interval.high

    @pytest.mark.parametrize(("lost", "verdict"), [(4, "indistinguishable"), (5, "indistinguishable"), (6, "worse")])
    def test_right_or_wrong_items_are_judged_by_the_exact_test(self, lost: int, verdict: Judgement) -> None:
        """Four answers lost and none gained were "worse" beside an exact p of 0.125."""
        found = of_items([1.0] * 200, [0.0] * lost + [1.0] * (200 - lost))
        assert found.p == pytest.approx(2.0 ** (1 - lost))
        assert found.verdict(0.95, "higher") == verdict
        interval = found.interval()
        assert interval is not None
        assert interval.covers_zero == (verdict == "indistinguishable")

    def test_one_item_that_has_all_the_weight_makes_none(self) -> None:
        weights = [1e9] + [1.0] * 19
        draw = random.Random(1)
        sides = [[weight * draw.gauss(0, 1) for weight in weights] for _ in range(2)]
        ratios = [ratio_of_sums(side, weights) for side in sides]
        found = distance(ratios[0], ratios[1], (numbers(sides[0], weights), numbers(sides[1], weights)))  # type: ignore[arg-type]
        assert (found.interval(), found.p_value()) == (None, None)
        assert found.why_no_error("A", "B").startswith("one item has nearly all of the weight")

    def test_a_level_that_is_none(self) -> None:
        with pytest.raises(InvalidRequest, match="the level of an interval is 95; give a number between 0 and 1"):
            distance(A, B).interval(95)


class TestPerplexity:
    """A loss and its perplexity are the same number, and get the same verdict."""

    def test_says_what_the_loss_says(self) -> None:
        draw = random.Random(2)
        for shift in (0.0, 0.01, 0.02, 0.05):
            counts = [float(draw.randrange(5, 40)) for _ in range(200)]
            before = [count * draw.gauss(3, 0.5) for count in counts]
            after = [x + count * draw.gauss(shift, 0.1) for x, count in zip(before, counts, strict=True)]
            losses = [ratio_of_sums(side, counts) for side in (before, after)]
            assert losses[0] is not None
            assert losses[1] is not None
            pairs = numbers(before, counts), numbers(after, counts)
            loss = distance(losses[0], losses[1], pairs)
            found = distance(perplexity(losses[0]), perplexity(losses[1]), pairs, unit="perplexity")
            assert found.verdict(0.95, "lower") == loss.verdict(0.95, "lower")
            assert found.p_value() == pytest.approx(loss.p_value())
            of_loss, interval = loss.interval(), found.interval()
            assert of_loss is not None
            assert interval is not None
            base = math.exp(losses[0].value)
            ends = [base * math.expm1(end) for end in (of_loss.low, of_loss.high)]
            assert [interval.low, interval.high] == pytest.approx(ends)

    def test_without_pairs_on_the_logarithms_too(self) -> None:
        losses = Ratio(3.0, 0.02, 200), Ratio(3.1, 0.03, 200)
        loss = distance(*losses)
        found = distance(*map(perplexity, losses), unit="perplexity")
        assert found.p_value() == pytest.approx(loss.p_value())
        assert (found.basis, found.value) == ("unpaired", pytest.approx(math.exp(3.1) - math.exp(3.0)))

    def test_items_that_one_side_lacks_are_left_out(self) -> None:
        draw = random.Random(3)
        before, after = ([draw.gauss(3, 0.5) for _ in range(n)] for n in (20, 19))
        a, b = (Ratio(statistics.fmean(side), standard_error(side), len(side)) for side in (before, after))
        pairs = numbers(before), numbers(after)
        found = distance(perplexity(a), perplexity(b), pairs, unit="perplexity")
        assert found.value == pytest.approx(math.exp(a.value) * math.expm1(distance(a, b, pairs).value))

    def test_infinite_perplexities_are_compared_as_they_are(self) -> None:
        found = distance(Ratio(20.0, 1.0, 50), Ratio(math.inf, None, 50), unit="perplexity")
        assert (found.value, found.basis) == (math.inf, "none")


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
