"""Numbers of items, and the shares of items in a value."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from evalsvc.metrics.distance import distance
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
from evalsvc.spec.protocol import MetricValue, Protocol


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


def test_items_without_weight_have_no_share() -> None:
    found = linear_mean([("a", 0), ("a", 1), ("a", 2)], [1.0, 0.0, 4.0], [1, 0, 2])
    assert set(found.parts) == {("a", 0), ("a", 2)}
    assert linear_mean([("a", 0), ("a", 1)], [1.0, 0.0], [1, 0]) is None, "one item has no error"
    assert linear_mean([("a", 0), ("a", 1)], [math.inf, 0.0], [1, 1]) is None


def test_a_mean_of_one_benchmark_has_its_answers_for_shares() -> None:
    """Then they are right or wrong still, and McNemar's exact test applies."""
    answers = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found = mean_of_answers(answers)
    assert list(combined(found.value, [(1.0, found)]).shares().values()) == answers


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


def test_a_sample_has_the_factor_of_a_finite_population() -> None:
    items = [{"benchmark": "a", "index": index, "x": float(index % 2)} for index in range(30)]
    whole, part = linear_of(metric("x"), items), linear_of(metric("x", drawn_from=40), items)
    assert part.stderr == pytest.approx(0.5 * whole.stderr)
    assert (finite_factor(30, 40), finite_factor(30, None), finite_factor(30, 30)) == (0.5, 1, 0)


def test_shares_are_put_into_the_items_that_have_some() -> None:
    items: list[dict[str, Any]] = [{"benchmark": name, "index": 0} for name in "ab"] + [{"benchmark": "a", "index": 1}]
    assert keep_shares("task/mean", mean_of_answers([0.25, 0.75]), items) == ("task/mean",)
    assert [item.get("task/mean") for item in items] == [0.25, None, 0.75]


def test_rounding_keeps_what_is_small_beside_the_largest_share() -> None:
    """As many decimals for all: a share that is zero but for rounding is zero."""
    found = Linear(123.0, {("a", 0): 87.0, ("a", 1): -87.0}).shares()
    assert found == {("a", 0): pytest.approx(246.03658, abs=1e-4), ("a", 1): pytest.approx(-0.03658, abs=1e-4)}
    assert all(share == round(share, 4) for share in found.values())


def compared(a: dict[str, list[float]], b: dict[str, list[float]]) -> tuple[Ratio, Ratio, tuple[Numbers, Numbers]]:
    """The plain mean over benchmarks of two checkpoints, and the shares of their questions."""
    values, numbers = [], []
    for side in (a, b):
        members = [mean_of_answers(answers, name) for name, answers in side.items()]
        value = statistics.fmean(member.value for member in members)
        whole = combined(value, [(1 / len(members), member) for member in members])
        shares = whole.shares()
        values.append(Ratio(value, whole.stderr, len(shares)))
        numbers.append(Numbers(list(shares), [list(shares.values())]))
    return values[0], values[1], (numbers[0], numbers[1])


def test_the_paired_error_is_that_of_the_weighted_paired_differences() -> None:
    """The slow reference: benchmark by benchmark, then √Σ (w s)²."""
    rng = random.Random(3)
    a = {"x": [rng.random() for _ in range(20)], "y": [rng.random() for _ in range(50)]}
    b = {name: [value + rng.gauss(0.1, 0.1) for value in values] for name, values in a.items()}
    one, other, pairs = compared(a, b)
    parts = [standard_error([v - u for u, v in zip(a[name], b[name], strict=True)]) or 0 for name in a]
    assert distance(one, other, pairs).stderr == pytest.approx(math.hypot(*parts) / 2, rel=1e-5)


def test_only_the_metrics_own_benchmark_counts() -> None:
    """Two benchmarks of one task both have an item 0; shares are of items of every benchmark."""
    rows = [
        {"benchmark": name, "index": 0, "acc": place, "t/mean": place} for place, name in enumerate(("arc", "piqa"))
    ]
    assert item_numbers(rows, "piqa/acc", ["acc"]) == Numbers([("piqa", 0)], [[1.0]])
    assert item_numbers(rows, "t/mean", ["t/mean"]) == Numbers([("arc", 0), ("piqa", 0)], [[0.0, 1.0]])


def test_items_without_the_key_or_an_index_do_not_count() -> None:
    """Items come out of JSON, where NaN and infinities are strings."""
    rows = [
        {"index": 0, "acc": 1},
        {"index": 1, "acc": "-Infinity"},
        {"index": 2},
        {"index": 3, "acc": None},
        {"acc": 1},
    ]
    assert item_numbers(rows, "arc/acc", ["acc"]) == Numbers([(None, 0), (None, 1)], [[1.0, -math.inf]])


def test_the_group_of_an_item_is_named_by_its_row() -> None:
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
