import math
import random
import statistics
from collections.abc import Callable, Sequence

import pytest
from paired_items import paired_difference

from evalsvc.errors import InvalidRequest
from evalsvc.metrics.centred import interval_of_centred, ratio_of_centred
from evalsvc.metrics.distance import Distance, Judgement, distance, judge
from evalsvc.metrics.flips import Flips
from evalsvc.metrics.intervals import MIN_ITEMS, Interval, Spread, confidence_interval, value_interval
from evalsvc.metrics.item_numbers import Numbers, item_numbers
from evalsvc.metrics.mcnemar import McNemar
from evalsvc.metrics.paired import Paired, difference_of, spread_of
from evalsvc.metrics.ratio import Ratio, mean_of, perplexity, ratio_of_sums
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.protocol import Direction

ITEMS = 400
RESAMPLES = 1_000


def items(values: Sequence[float], **more: object) -> list[dict[str, object]]:
    return [{"index": index, "acc": value, **more} for index, value in enumerate(values)]


def found_of(found: Paired | None) -> tuple[float, float | None, int, int, int]:
    """Value, standard error, and how many items are paired, and on one side only."""
    assert found is not None
    return found.value, found.stderr, found.n, found.n_only_a, found.n_only_b


def known(found: Distance) -> tuple[float, float | None, str, int, tuple[str, ...]]:
    """Value, standard error, where that is from, the number of items, and which sides lack an error."""
    return found.value, found.stderr, found.basis, found.n, found.lacking


def bootstrap(statistic: Callable[[list[int]], float], n: int) -> float:
    """The standard deviation of a statistic over resamples of items; both sides of an item are drawn together."""
    draw = random.Random(4)
    return statistics.stdev(statistic(draw.choices(range(n), k=n)) for _ in range(RESAMPLES))


def correlated_answers(base: float, flips: float, seed: int) -> tuple[list[int], list[int]]:
    """Right or wrong, before and after; a share of the right ones was forgotten, a third as much was learnt."""
    draw = random.Random(seed)
    before = [int(draw.random() < base) for _ in range(ITEMS)]
    after = [int(draw.random() > flips) if right else int(draw.random() < flips / 3) for right in before]
    return before, after


class TestDistance:
    """Which standard error the difference of two values has, and where it comes from."""

    A, B = Ratio(1.0, 0.3, 40), Ratio(1.5, 0.4, 30)

    def test_pairs_come_first(self) -> None:
        pairs = tuple(item_numbers(items(values), "t/x", ["acc"]) for values in ([0, 1, 2], [1, 1, 3]))
        found = distance(self.A, self.B, pairs)  # type: ignore[arg-type]
        assert known(found) == (0.5, pytest.approx(1 / 3), "paired", 3, ())

    def test_independent_values_have_the_error_of_both(self) -> None:
        assert known(distance(self.A, self.B)) == (0.5, pytest.approx(0.5), "unpaired", 30, ())
        one_item = item_numbers(items([1]), "t/x", ["acc"])
        assert distance(self.A, self.B, (one_item, one_item)).basis == "unpaired", "one pair has no error"

    @pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_the_error_of_one_side_is_no_error_of_the_difference(self, unknown: float | None, side: int) -> None:
        sides = [self.A, self.B]
        sides[side] = Ratio(sides[side].value, unknown, 30)
        found = distance(*sides)
        assert known(found) == (0.5, None, "none", 30, ("ab"[side],))
        other = "BA"[side]
        assert found.why_no_error("A", "B").startswith(f"only {other} has a standard error, and the error of one")

    def test_neither_side_has_an_error(self) -> None:
        found = distance(Ratio(1.0, None, 1), Ratio(3.0, None, 1))
        assert known(found) == (2.0, None, "none", 1, ("a", "b"))
        assert found.why_no_error("A", "B") == "neither A nor B has a standard error"
        assert distance(self.A, self.B).why_no_error("A", "B") == ""

    @pytest.mark.parametrize("value", [1.0, math.nan, math.inf, -math.inf])
    def test_equal_values_are_apart_by_nothing(self, value: float) -> None:
        assert distance(Ratio(value, None, 1), Ratio(value, None, 1)).value == 0.0


class TestMean:
    def test_by_hand(self) -> None:
        """Differences -1, 0, 0, 1, 1: mean 1/5, variance 0.7."""
        found = paired_difference(items([1, 0, 1, 0, 0]), items([0, 0, 1, 1, 1]), "arc/acc", ["acc"])
        assert found_of(found) == (pytest.approx(0.2), pytest.approx(math.sqrt(0.7 / 5)), 5, 0, 0)

    def test_answers_that_stay_cost_little_error(self) -> None:
        """The two-sample error of equal answers is that of two coins; paired, it is that of seeing none change."""
        answers = items([1, 0, 0, 1, 1, 0] * 10)
        expected = math.sqrt(2 / 62 / 62), 60, 0, 0
        assert found_of(paired_difference(answers, answers, "arc/acc", ["acc"])) == (0.0, *expected)

    def test_is_mcnemars_variance(self) -> None:
        """With g gained and l lost of n: n² · stderr² · (n − 1) / n = g + l − (g − l)² / n."""
        before, after = correlated_answers(0.7, 0.2, seed=1)
        found = paired_difference(items(before), items(after), "arc/acc", ["acc"])
        gained, lost = (sum(b - a == sign for a, b in zip(before, after, strict=True)) for sign in (1, -1))
        expected = (gained + lost - (gained - lost) ** 2 / ITEMS) / ITEMS / (ITEMS - 1)
        assert found is not None
        assert found.stderr == pytest.approx(math.sqrt(expected))

    def test_error_is_that_of_a_bootstrap(self) -> None:
        before, after = correlated_answers(0.7, 0.2, seed=2)
        found = paired_difference(items(before), items(after), "arc/acc", ["acc"])
        spread = bootstrap(lambda chosen: statistics.mean(after[i] - before[i] for i in chosen), ITEMS)
        unpaired = math.hypot(statistics.stdev(before), statistics.stdev(after)) / math.sqrt(ITEMS)
        assert found is not None
        assert found.stderr == pytest.approx(spread, rel=0.1)
        assert found.stderr < 0.8 * unpaired


class TestRatio:
    """Bits per byte: summed bits over summed bytes."""

    KEYS = ("bits", "bytes")

    def measured(self, seed: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """Long items are harder, and their loss grows most: neither mean of means nor constant weights would do."""
        draw = random.Random(seed)
        sides: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
        for index in range(ITEMS):
            size = draw.randrange(5, 90)
            bits = size * (1 + 0.01 * size + draw.gauss(0, 0.3))
            rise = size * (0.05 + 0.002 * size + draw.gauss(0, 0.1))
            for side, value in zip(sides, (bits, bits + rise), strict=True):
                side.append({"index": index, "bits": value, "bytes": size})
        return sides

    def test_error_is_that_of_a_bootstrap(self) -> None:
        before, after = self.measured(seed=3)

        def difference(chosen: list[int]) -> float:
            total = sum(before[i]["bytes"] for i in chosen)
            return sum(after[i]["bits"] - before[i]["bits"] for i in chosen) / total

        found = paired_difference(before, after, "lambada/bits_per_byte", self.KEYS)
        assert found is not None
        assert found.value == pytest.approx(difference(list(range(ITEMS))))
        assert found.stderr == pytest.approx(bootstrap(difference, ITEMS), rel=0.1)

    def test_error_where_the_weights_differ_too(self) -> None:
        """Per-word losses of two tokenisations: each side has its own denominators."""
        before, after = self.measured(seed=5)
        draw = random.Random(6)
        after = [item | {"bytes": item["bytes"] + draw.randrange(20)} for item in after]

        def ratio(side: list[dict[str, float]], chosen: list[int]) -> float:
            return sum(side[i]["bits"] for i in chosen) / sum(side[i]["bytes"] for i in chosen)

        found = paired_difference(before, after, "x/y", self.KEYS)
        spread = bootstrap(lambda chosen: ratio(after, chosen) - ratio(before, chosen), ITEMS)
        assert found is not None
        assert found.stderr == pytest.approx(spread, rel=0.1)

    def test_against_nothing_it_is_the_error_of_the_ratio(self) -> None:
        _, after = self.measured(seed=7)
        nothing = [{**item, "bits": 0.0} for item in after]
        alone = ratio_of_sums([item["bits"] for item in after], [item["bytes"] for item in after])
        found = paired_difference(nothing, after, "x/y", self.KEYS)
        assert alone is not None
        assert found is not None
        assert (found.value, found.stderr) == (pytest.approx(alone.value), pytest.approx(alone.stderr))

    def test_items_without_weight_do_not_count(self) -> None:
        before, after = self.measured(seed=8)
        empty = {"index": ITEMS, "bits": 0.0, "bytes": 0}
        assert paired_difference([*before, empty], [*after, empty], "x/y", self.KEYS) == paired_difference(
            before, after, "x/y", self.KEYS
        )
        assert paired_difference([empty], [empty], "x/y", self.KEYS) is None


class TestMatching:
    def test_order_does_not_matter_and_what_one_side_lacks_is_counted(self) -> None:
        before = items([1, 0, 1, 0])
        after = list(reversed(items([1, 1, 1])))
        assert found_of(paired_difference(before, after, "arc/acc", ["acc"])) == (
            pytest.approx(1 / 3),
            pytest.approx(1 / 3),
            3,
            1,
            0,
        )

    def test_only_the_metrics_own_benchmark_counts(self) -> None:
        """Two benchmarks of one task both have an item 0."""
        before = items([1, 1], benchmark="arc") + items([0, 0, 0], benchmark="piqa")
        after = items([0, 0], benchmark="arc") + items([1, 1, 1], benchmark="piqa")
        assert found_of(paired_difference(before, after, "piqa/acc", ["acc"])) == (
            1.0,
            pytest.approx(math.sqrt((5 / 5 - (3 / 5) ** 2) / 5)),
            3,
            0,
            0,
        )

    def test_items_without_the_key_or_an_index_do_not_count(self) -> None:
        before = [*items([1, 0]), {"index": 2}, {"index": 3, "acc": None}, {"acc": 1}]
        assert found_of(paired_difference(before, before, "arc/acc", ["acc"])) == (0.0, math.sqrt(2) / 4, 2, 0, 0)

    def test_nothing_in_common(self) -> None:
        assert paired_difference(items([1]), [{"index": 5, "acc": 1}], "arc/acc", ["acc"]) is None
        assert paired_difference([], [], "arc/acc", ["acc"]) is None

    def test_one_item_has_no_error(self) -> None:
        assert found_of(paired_difference(items([1]), items([0]), "arc/acc", ["acc"])) == (-1.0, None, 1, 0, 0)


class TestNotFinite:
    """Items come out of JSON, where NaN and infinities are strings."""

    def test_infinite_on_both_sides_is_equal(self) -> None:
        exact = items(["Infinity", 30.0])  # type: ignore[list-item]
        assert found_of(paired_difference(exact, exact, "floor/psnr", ["acc"])) == (0.0, 0.0, 2, 0, 0)

    @pytest.mark.parametrize(("value", "expected"), [("NaN", math.nan), ("-Infinity", -math.inf)])
    def test_has_no_error(self, value: str, expected: float) -> None:
        found = paired_difference(items([1.0, 2.0]), items([value, 2.0]), "x/y", ["acc"])  # type: ignore[list-item]
        assert found_of(found) == (pytest.approx(expected, nan_ok=True), None, 2, 0, 0)

    def test_infinities_of_both_signs(self) -> None:
        found = paired_difference(items([1.0, 2.0]), items(["Infinity", "-Infinity"]), "x/y", ["acc"])  # type: ignore[list-item]
        assert found_of(found) == (pytest.approx(math.nan, nan_ok=True), None, 2, 0, 0)


class TestRetention:
    CHANCE = 0.25

    def test_by_hand(self) -> None:
        """3/4 before and 1/2 after, at chance 1/4: half of what was above chance is left."""
        found = ratio_of_centred([1, 1, 1, 0], [1, 1, 0, 0], self.CHANCE)
        parts = [1 - 0.25 - 0.5 * (1 - 0.25), 1 - 0.25 - 0.5 * (1 - 0.25), -0.25 - 0.5 * 0.75, -0.25 + 0.5 * 0.25]
        assert found == Ratio(0.5, pytest.approx(standard_error([part / 0.5 for part in parts])), 4)

    def test_is_the_ratio_of_centred_accuracies(self) -> None:
        before, after = correlated_answers(0.7, 0.2, seed=9)
        centred = [(statistics.mean(side) - 0.25) / 0.75 for side in (before, after)]
        found = ratio_of_centred(before, after, self.CHANCE)
        assert found is not None
        assert found.value == pytest.approx(centred[1] / centred[0])

    def test_error_is_that_of_a_bootstrap(self) -> None:
        before, after = correlated_answers(0.7, 0.2, seed=10)

        def retained(chosen: list[int]) -> float:
            return (sum(after[i] for i in chosen) / ITEMS - 0.25) / (sum(before[i] for i in chosen) / ITEMS - 0.25)

        found = ratio_of_centred(before, after, self.CHANCE)
        assert found is not None
        assert found.stderr == pytest.approx(bootstrap(retained, ITEMS), rel=0.1)

    def test_error_of_the_mean_is_that_of_a_bootstrap(self) -> None:
        tasks = [correlated_answers(base, flips, seed) for base, flips, seed in ((0.7, 0.2, 11), (0.8, 0.4, 12))]

        def retained(chosen: list[int]) -> float:
            # Each task has items of its own: those of the second are drawn from elsewhere in the list.
            draws = chosen[: ITEMS // 2], chosen[ITEMS // 2 :]
            ratios = [
                (statistics.mean(after[i] for i in half) - 0.25) / (statistics.mean(before[i] for i in half) - 0.25)
                for (before, after), half in zip(tasks, draws, strict=True)
            ]
            return statistics.mean(ratios)

        found = mean_of([ratio_of_centred(*task, self.CHANCE) for task in tasks])  # type: ignore[misc]
        assert found is not None
        assert found.n == 2 * ITEMS
        # Of half the items each, so √2 times the error.
        assert found.stderr * math.sqrt(2) == pytest.approx(bootstrap(retained, ITEMS), rel=0.1)  # type: ignore[operator]

    def test_a_base_at_chance_has_none(self) -> None:
        assert ratio_of_centred([1, 0], [1, 1], 0.5) is None
        assert ratio_of_centred([], [], 0.5) is None


def forgetful(
    rng: random.Random, n: int, base_right: float, kept: float, gained: float
) -> tuple[list[float], list[float]]:
    """Answers of a base, and of a checkpoint that keeps a part of what it gets right and gains a part of the rest."""
    base = [float(rng.random() < base_right) for _ in range(n)]
    return base, [float(rng.random() < (kept if right else gained)) for right in base]


class TestFiellersInterval:
    CHANCE = 0.25
    DRAWS = 2000

    def test_by_hand(self) -> None:
        """Its ends are where the difference x̄ − ρ ȳ is z standard errors from nothing."""
        base, values = correlated_answers(0.7, 0.2, seed=21)
        found = interval_of_centred(base, values, self.CHANCE, level=0.9)
        assert found is not None
        for ratio in (found.low, found.high):
            parts = [x - self.CHANCE - ratio * (y - self.CHANCE) for y, x in zip(base, values, strict=True)]
            assert abs(statistics.fmean(parts)) == pytest.approx(1.6487 * (standard_error(parts) or 0), rel=1e-3)

    @pytest.mark.parametrize(
        ("n", "base_right", "kept", "gained"),
        [(100, 0.45, 0.6, 0.2), (200, 0.35, 0.6, 0.2), (100, 0.6, 0.3, 0.2), (100, 0.6, 0.9, 0.1)],
        ids=["half left", "weak base", "nothing left", "all left"],
    )
    def test_covers_as_often_as_it_says(self, n: int, base_right: float, kept: float, gained: float) -> None:
        """Also where the base is two standard errors above chance, where a linearised interval misses on one side."""
        rng = random.Random(n)
        truth = (base_right * kept + (1 - base_right) * gained - self.CHANCE) / (base_right - self.CHANCE)
        missed = {"low": 0, "high": 0}
        for _ in range(self.DRAWS):
            base, values = forgetful(rng, n, base_right, kept, gained)
            found = interval_of_centred(base, values, self.CHANCE)
            missed["low"] += found is not None and truth < found.low
            missed["high"] += found is not None and truth > found.high
        share = {side: count / self.DRAWS for side, count in missed.items()}
        assert 0.03 < share["low"] + share["high"] < 0.07
        assert all(0.005 < each < 0.05 for each in share.values())

    def test_a_linearised_interval_misses_on_one_side(self) -> None:
        """What Fieller's is for: a retention that is too low is believed twice as often as it should be."""
        rng, missed = random.Random(3), {"low": 0, "high": 0}
        for _ in range(self.DRAWS):
            ratio = ratio_of_centred(*forgetful(rng, 200, 0.35, 0.6, 0.2), self.CHANCE)
            if ratio is None:  # the base is at chance exactly
                continue
            plain = confidence_interval(ratio.value, Spread(ratio.stderr or 0, ratio.n - 1))
            missed["low"] += plain.low > 0.9
            missed["high"] += plain.high < 0.9
        assert missed["high"] > 10 * missed["low"]

    def test_a_base_that_may_be_at_chance_has_none(self) -> None:
        assert interval_of_centred([1, 0, 0, 0] * 9 + [1], [1, 0, 0, 0] * 9 + [0], self.CHANCE) is None
        assert interval_of_centred([1], [1], self.CHANCE) is None

    def test_nothing_has_changed(self) -> None:
        base = [1.0] * 70 + [0.0] * 30
        assert interval_of_centred(base, base, self.CHANCE) == Interval(
            pytest.approx(1),  # type: ignore[arg-type]
            pytest.approx(1),  # type: ignore[arg-type]
            0.95,
        )


def test_mean_of_values_without_error() -> None:
    assert mean_of([Ratio(1.0, 0.3, 10), Ratio(0.5, 0.4, 5)]) == Ratio(0.75, pytest.approx(0.25), 15)
    assert mean_of([Ratio(1.0, None, 1), Ratio(0.5, 0.1, 5)]) == Ratio(0.75, None, 6)
    assert mean_of([]) is None


class TestClaims:
    """What a distance says, and where it says nothing."""

    def of(self, before: Sequence[float], after: Sequence[float], **more: object) -> Distance:
        sides = [item_numbers(items(values), "t/x", ["acc"]) for values in (before, after)]
        ratios = [Ratio(statistics.fmean(values), standard_error(values), len(values)) for values in (before, after)]
        return distance(ratios[0], ratios[1], (sides[0], sides[1]), **more)  # type: ignore[arg-type]

    def test_few_items_make_none(self) -> None:
        draw = random.Random(1)
        values = [draw.gauss(0, 1) for _ in range(MIN_ITEMS)]
        nothing = [0.0] * MIN_ITEMS
        enough, few = self.of(nothing, values), self.of(nothing[1:], values[1:])
        assert enough.interval() is not None
        assert (few.interval(), few.p_value(), few.verdict(0.95, "lower")) == (None, None, None)
        assert few.why_no_error("A", "B") == f"{MIN_ITEMS - 1} items are too few, an interval needs {MIN_ITEMS}"
        assert enough.why_no_error("A", "B") == ""

    def test_few_items_of_unpaired_values_make_none(self) -> None:
        few, many = Ratio(0.0, 0.1, MIN_ITEMS - 1), Ratio(9.0, 0.1, 1000)
        assert distance(few, many).verdict(0.95, "lower") is None
        assert distance(Ratio(0.0, 0.1, MIN_ITEMS), many).verdict(0.95, "lower") == "worse"

    @pytest.mark.parametrize(("n", "expected"), [(2, "indistinguishable"), (5, "indistinguishable"), (6, "worse")])
    def test_a_constant_shift_is_tested_by_its_signs(self, n: int, expected: Judgement) -> None:
        """A standard error of zero would make every difference certain, of two items as well."""
        found = self.of([0.1 * place for place in range(n)], [0.1 * place + 0.3 for place in range(n)])
        assert found.interval() is None
        assert found.p == pytest.approx(2.0 ** (1 - n))
        assert found.verdict(0.95, "lower") == expected

    def test_equal_values_are_indistinguishable(self) -> None:
        found = self.of([0.5, 1.5, 2.5], [0.5, 1.5, 2.5])
        assert (found.p, found.verdict(0.95, "lower")) == (1.0, "indistinguishable")

    @pytest.mark.parametrize("level", [0.8, 0.95, 0.9973])
    def test_interval_and_p_value_say_the_same(self, level: float) -> None:
        draw = random.Random(7)
        for n in (8, 12, 40):
            for shift in (0.2, 0.5, 0.9, 1.4):
                found = self.of([0.0] * n, [draw.lognormvariate(0, 1) * shift - 1 for _ in range(n)])
                interval, p = found.interval(level), found.p_value()
                assert interval is not None
                assert p is not None
                assert interval.covers_zero == (p > 1 - level)
                assert interval.low < found.value < interval.high

    def test_both_directions(self) -> None:
        found = self.of([0.0] * 20, [1.0 + 0.1 * (place % 3) for place in range(20)])
        verdicts = [found.verdict(0.95, direction) for direction in ("lower", "higher", "none")]  # type: ignore[arg-type]
        assert verdicts == ["worse", "better", "different"]


class TestRightOrWrong:
    """Items that are 1 or 0: the verdict is that of the exact test, and the interval never contradicts it."""

    @pytest.mark.parametrize("level", [0.9, 0.95, 0.99, 0.9973])
    def test_interval_and_exact_test_say_the_same(self, level: float) -> None:
        for n in (20, 100, 500):
            for lost in range(15):
                for gained in range(15 - lost):
                    flips = Flips(McNemar(n - lost - gained, lost, gained, 0))
                    below, above = flips.reach((1 - level) / 2)
                    covers = flips.value - below <= 0 <= flips.value + above
                    assert covers == (flips.counts.p > 1 - level), (n, lost, gained)
                    assert below > 0
                    assert above > 0

    def test_the_bounds_solve_the_score_equation(self) -> None:
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

        flips = Flips(McNemar(n - lost - gained, lost, gained, 0))
        below, above = flips.reach(0.025)
        assert score(flips.value - below) == pytest.approx(z, abs=2e-3)
        assert score(flips.value + above) == pytest.approx(-z, abs=2e-3)

    @pytest.mark.parametrize(
        ("tail", "n", "chance"), [(0.00135, 1000, 0.01), (0.00135, 5000, 0.005), (0.0228, 300, 0.02)]
    )
    def test_a_bound_far_out_misses_no_more_often_than_it_says(self, tail: float, n: int, chance: float) -> None:
        """Items are lost with this chance and none gained. The upper bound of the loss is summed over the binomial
        distribution: bounds of the normal kind, with one item added to each side, miss 2.5 to 7 times as often."""
        missed = 0.0
        for lost in range(n):
            below, _ = Flips(McNemar(n - lost, lost, 0, 0)).reach(tail)
            if lost / n + below > chance:
                break
            missed += math.comb(n, lost) * chance**lost * (1 - chance) ** (n - lost)
        assert missed <= 1.2 * tail

    def test_four_lost_of_200_are_not_worse(self) -> None:
        before, after = [1.0] * 200, [0.0] * 4 + [1.0] * 196
        numbers = [Numbers([(None, place) for place in range(200)], [side]) for side in (before, after)]
        found = distance(Ratio(1.0, 0.01, 200), Ratio(0.98, 0.01, 200), (numbers[0], numbers[1]))
        assert found.p == pytest.approx(0.125)
        assert found.verdict(0.95, "higher") == "indistinguishable"

    @pytest.mark.parametrize(("n", "changed", "gain"), [(20, 0.15, 0.0), (100, 0.15, 0.05), (50, 0.3, 0.2)])
    def test_the_interval_covers_as_often_as_it_says(self, n: int, changed: float, gain: float) -> None:
        draw, covered, draws = random.Random(n), 0, 2000
        for _ in range(draws):
            kinds = draw.choices("lgs", [(changed - gain) / 2, (changed + gain) / 2, 1 - changed], k=n)
            flips = Flips(McNemar(kinds.count("s"), kinds.count("l"), kinds.count("g"), 0))
            below, above = flips.reach(0.025)
            covered += flips.value - below <= gain <= flips.value + above
        assert covered / draws > 0.93


class TestGroups:
    """Items that belong together: captions of one image, windows of one document."""

    def clustered(self, seed: int, images: int = 60, each: int = 5) -> tuple[Numbers, Numbers]:
        draw = random.Random(seed)
        before, after, owners = [], [], []
        for image in range(images):
            shift = draw.gauss(0, 1)
            for _ in range(each):
                before.append(draw.gauss(5, 1))
                after.append(before[-1] + shift + draw.gauss(0, 0.1))
                owners.append(image)
        names = [(None, place) for place in range(len(owners))]
        return Numbers(names, [before], owners), Numbers(names, [after], owners)

    def test_the_error_is_over_groups(self) -> None:
        found = difference_of(*self.clustered(1))
        alone = difference_of(*(Numbers(side.items, side.columns) for side in self.clustered(1)))
        assert found is not None
        assert alone is not None
        assert found.stderr == pytest.approx(math.sqrt(5) * (alone.stderr or 0), rel=0.1)
        assert (found.n, found.groups, alone.groups) == (300, 60, None)

    def test_null_differences_are_called_apart_as_often_as_stated(self) -> None:
        called = 0
        for seed in range(300):
            numbers = self.clustered(seed, images=12, each=3)
            found = distance(Ratio(0.0, 1.0, 36, 12), Ratio(0.0, 1.0, 36, 12), numbers)
            called += found.spread is not None and found.spread.p_value(difference_of(*numbers).value) <= 0.05  # type: ignore[union-attr]
        assert called / 300 < 0.09

    def test_equals_the_sum_of_each_group(self) -> None:
        """The slow way: the mean over groups of equal size of their means."""
        before, after = self.clustered(3)
        differences = [y - x for x, y in zip(before.columns[0], after.columns[0], strict=True)]
        means = [statistics.fmean(differences[start : start + 5]) for start in range(0, 300, 5)]
        found = difference_of(before, after)
        assert found is not None
        assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(60))

    def test_the_group_of_an_item_is_named_by_its_row(self) -> None:
        rows = [{"index": place, "x": float(place), "image": place // 2} for place in range(6)]
        rows.append({"index": 6, "x": 1.0})
        found = item_numbers(rows, "t/x", ["x"], "image")
        assert found.groups is not None
        assert len(set(found.groups)) == 4


class TestFewHeavyItems:
    """A ratio whose weights are very unequal rests on few items, however many there are."""

    def losses(self, draw: random.Random, n: int) -> Numbers:
        counts = [math.ceil(draw.lognormvariate(3, 1)) for _ in range(n)]
        sums = [count * draw.gauss(0, 0.3) + math.sqrt(count) * draw.gauss(0, 1) for count in counts]
        return Numbers([(None, place) for place in range(n)], [sums, [float(count) for count in counts]])

    def test_freedom_is_that_of_the_effective_number(self) -> None:
        """Weights 3, 1, 1, 1: 36 / 12 = 3."""
        found = spread_of(Numbers([(None, place) for place in range(4)], [[1.0, 2.0, 0.0, 5.0], [3.0, 1.0, 1.0, 1.0]]))
        assert found is not None
        assert found.dof == pytest.approx(2)

    def test_equal_weights_leave_the_number_of_items(self) -> None:
        found = spread_of(Numbers([(None, place) for place in range(5)], [[1.0, 2.0, 0.0, 5.0, 3.0]]))
        ratio = standard_error([1.0, 2.0, 0.0, 5.0, 3.0])
        assert found is not None
        assert (found.dof, found.stderr) == (pytest.approx(4), pytest.approx(ratio or 0))

    @pytest.mark.parametrize("n", [10, 30])
    def test_the_interval_covers_as_often_as_it_says(self, n: int) -> None:
        draw, missed, draws = random.Random(n), 0, 1500
        for _ in range(draws):
            numbers = self.losses(draw, n)
            ratio = ratio_of_sums(*numbers.columns)
            assert ratio is not None
            found = value_interval(ratio, "nats/token", items=spread_of(numbers))
            missed += found is not None and not found.covers_zero
        assert missed / draws < 0.08

    def test_one_item_that_has_all_the_weight_makes_no_claim(self) -> None:
        weights = [1e9] + [1.0] * 19
        draw = random.Random(1)
        names = [(None, place) for place in range(20)]
        sides = [Numbers(names, [[w * draw.gauss(0, 1) for w in weights], weights]) for _ in range(2)]
        ratios = [ratio_of_sums(*side.columns) for side in sides]
        found = distance(ratios[0], ratios[1], (sides[0], sides[1]))  # type: ignore[arg-type]
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
            names = [(None, place) for place in range(200)]
            pairs = Numbers(names, [before, counts]), Numbers(names, [after, counts])
            losses = [ratio_of_sums(side, counts) for side in (before, after)]
            assert losses[0] is not None
            assert losses[1] is not None
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

    def test_infinite_perplexities_are_compared_as_they_are(self) -> None:
        found = distance(Ratio(20.0, 1.0, 50), Ratio(math.inf, None, 50), unit="perplexity")
        assert (found.value, found.basis) == (math.inf, "none")


def test_items_that_one_side_lacks_leave_the_others_paired() -> None:
    """One lost item of a thousand is no reason to compare as if nothing were shared."""
    draw = random.Random(4)
    before = [draw.gauss(0, 1) for _ in range(1000)]
    after = [value + draw.gauss(0.01, 0.05) for value in before]
    sides = [item_numbers(items(values), "t/x", ["acc"]) for values in (before, after[:-1])]
    found = distance(Ratio(0.0, 0.03, 1000), Ratio(0.0, 0.03, 999), (sides[0], sides[1]))
    assert (found.basis, found.n, found.n_only_a, found.n_only_b) == ("paired", 999, 1, 0)
    assert found.value == pytest.approx(statistics.fmean(y - x for x, y in zip(before[:-1], after, strict=False)))
    assert found.stderr == pytest.approx(0.05 / math.sqrt(999), rel=0.1)


def test_a_sample_of_a_finite_benchmark_has_less_error() -> None:
    draw = random.Random(5)
    sides = [item_numbers(items([draw.gauss(0, 1) for _ in range(200)]), "t/x", ["acc"]) for _ in range(2)]
    whole, part = difference_of(sides[0], sides[1]), difference_of(sides[0], sides[1], drawn_from=1000)
    assert whole is not None
    assert part is not None
    assert part.stderr == pytest.approx((whole.stderr or 0) * math.sqrt(0.8))


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


@pytest.mark.parametrize("level", [0, 1, -0.5, math.nan])
def test_a_level_that_is_none(level: float) -> None:
    with pytest.raises(InvalidRequest, match="give a number between 0 and 1"):
        Distance(1.0, None, "none", 1).interval(level)
