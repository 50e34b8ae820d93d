"""What is left of a base's abilities, from answers that are written out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from benchmark_results import by_name, results

from evalsvc.language.results import Results
from evalsvc.metrics.centred import interval_of_centred
from evalsvc.metrics.item_numbers import item_numbers
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.forgetting.retention import RATIO, Differences, Retained, add_retention, centred, text_retained
from evalsvc.tasks.forgetting.rows import benchmark_rows

BASE = {"task": "forgetting", "base": "ab" * 32}


def retained(own: Results, base: Results) -> Retained:
    return text_retained("forgetting", benchmark_rows(own, base), own, base, BASE)


def check_items(metric: MetricValue, items: Sequence[Mapping[str, Any]]) -> None:
    """A metric's items are of its value and error; else a paired error is that of another number."""
    numbers = item_numbers(items, metric.name, metric.items)
    [column] = numbers.columns
    assert len(column) == metric.n
    assert statistics.fmean(column) == pytest.approx(metric.value, abs=1e-6)
    assert standard_error(column) == pytest.approx(metric.stderr, rel=1e-5)


def test_every_benchmark_counts_as_retained() -> None:
    """Also where the base is at chance: a choice by the same answers would take those where it was lucky."""
    chances = {"hard": 0.25, "easy": 0.5, "open": 0.0}
    base = results(chances, hard=[1, 0, 0, 0] * 5, easy=[1, 1, 1, 0] * 10, open=[1, 0] * 10)
    own = results(chances, hard=[1, 1, 0, 0] * 5, easy=[1, 1, 0, 0] * 10, open=[1, 0, 1, 1] * 5)
    found = retained(own, base)
    assert (found.counted, found.at_chance) == (["hard", "easy", "open"], ["hard"])
    metric = by_name(found.metrics)["forgetting/text_retained"]
    assert metric.value == pytest.approx((0.25 / 0.75 + 0 + 0.75) / (0 + 0.5 + 0.5))
    assert (metric.n, metric.unit, metric.direction, metric.baseline) == (80, "fraction", "higher", 0.0)
    assert metric.protocol.content["members"].keys() == {"hard/acc", "easy/acc", "open/acc"}
    assert (metric.protocol.content["base"], metric.protocol.content["estimator"]) == (BASE["base"], RATIO)
    assert metric.items == ("forgetting/text_retained",)
    check_items(metric, own.items)


def test_the_same_answers_leave_an_error() -> None:
    same = results(a=[1.0] * 30 + [0.0] * 10)
    [metric, _], row = retained(same, same).metrics, benchmark_rows(same, same)[0]
    low, high = metric.ends
    assert (metric.value, row.retained) == (1, 1)
    assert metric.stderr == pytest.approx(row.retained_stderr) == pytest.approx(row.change_stderr / 0.5)
    assert 0.8 < low < 1 < high < 1.2


def test_nothing_above_chance_gives_no_headline() -> None:
    found = retained(results(a=[1, 0, 0, 1]), results(a=[1, 0, 0, 0]))
    assert (found.metrics, found.counted, found.at_chance) == ([], ["a"], ["a"])


def test_a_base_that_is_all_text_is_the_same_within_text() -> None:
    """The language model before it was widened has one softmax, which is both."""
    found = retained(results(a=[1, 1, 0, 1]), results(a=[1] * 4, within=False))
    assert {metric.ends for metric in found.metrics} == {(None, None)}, "four questions are too few"
    assert by_name(found.metrics)["forgetting/text_retained_within"].value == pytest.approx((0.75 - 0.25) / 0.75)


def test_a_series_goes_on_where_the_table_says_what_the_options_say() -> None:
    """The table came later: a history of benchmarks whose chance it does not change must not break."""
    base, own = results(arc_easy=[1, 1, 1, 0] * 9, mine=[1, 1] * 9), results(arc_easy=[1, 1, 0, 0] * 9, mine=[1, 0] * 9)
    [metric, _] = retained(own, base).metrics
    members = {f"{name}/acc": by_name(own.metrics)[f"{name}/acc"].protocol.id for name in ("arc_easy", "mine")}
    assert metric.protocol.content == {**BASE, "members": members, "estimator": RATIO, "above_chance": 2.0}


def test_a_base_that_always_says_yes_has_nothing_to_lose() -> None:
    """BoolQ's .62 is far above ½ and knows nothing; the version of the table that says so is in the protocol."""
    chances = {"boolq": 0.5}
    yes, knows = [1.0] * 62 + [0.0] * 38, [1.0] * 90 + [0.0] * 10
    assert retained(results(chances, boolq=yes), results(chances, boolq=yes)).at_chance == ["boolq"]
    metric = by_name(retained(results(chances, boolq=yes), results(chances, boolq=knows)).metrics)
    assert metric["forgetting/text_retained"].value == pytest.approx(0)
    assert metric["forgetting/text_retained"].protocol.content["chance"] == {"boolq": {"value": 0.62, "table": 1}}


def test_of_each_benchmark_what_was_lost_gained_and_retained() -> None:
    own = results(a=[1, 1, 0, 0, 1, 0] * 4, b=[1, 0, 0, 0] * 4)
    base = results(a=[1, 1, 1, 1, 0, 0] * 4, b=[0, 1, 0, 0] * 4)
    differences = Differences("forgetting")
    add_retention(differences, benchmark_rows(own, base), own, base, BASE)
    found = by_name(differences.metrics)
    rows = [{"benchmark": "forgetting", "index": index, **row} for index, row in differences.numbers.items()]
    for metric in found.values():
        check_items(metric, rows)
    lost, gained, left = (found[f"forgetting/a_{name}"] for name in ("lost", "gained", "retained"))
    assert (lost.value, gained.value) == pytest.approx((2 / 6, 1 / 6))
    assert lost.stderr == pytest.approx((2 / 6 * 4 / 6 / 23) ** 0.5)
    assert (lost.direction, gained.direction, left.direction, left.baseline) == ("lower", "higher", "higher", 0.0)
    assert left.value == pytest.approx((0.5 - 0.25) / (4 / 6 - 0.25))
    # Where no answer changed, the errors of version 1 were zero.
    version = {"comparison": "forgetting/2"}
    assert left.protocol.content == {"benchmark": "a", **BASE, **version, "chance": {"value": 0.25, "table": None}}
    assert lost.protocol.content == gained.protocol.content == {"benchmark": "a", **BASE, **version}
    assert "forgetting/b_retained" not in found, "of chance nothing can be retained"
    of_both = {*(f"a_{name}" for name in ("lost", "gained", "retained")), "b_lost", "b_gained"}
    assert {name for name in found if name.endswith("_within")} == {f"forgetting/{name}_within" for name in of_both}


def test_the_centred_mean_needs_no_base() -> None:
    """Runs with different bases are compared by it, so the base must not be in its protocol."""
    chances = {"boolq": 0.5, "lambada_openai": 0.0}
    own = results(chances, boolq=[1.0] * 8 + [0.0] * 2, lambada_openai=[1.0, 0.0] * 5)
    base = results(chances, boolq=[1.0] * 10, lambada_openai=[1.0] * 10)
    found = by_name(list(centred("forgetting", benchmark_rows(own, base), own, {"task": "forgetting"})))
    metric = found["forgetting/centred"]
    check_items(metric, own.items)
    assert metric.value == pytest.approx(((0.8 - 0.62) / 0.38 + 0.5) / 2)
    errors = [by_name(own.metrics)[f"{name}/acc"].stderr or 0 for name in ("boolq", "lambada_openai")]
    assert metric.stderr == pytest.approx(((errors[0] / 0.38) ** 2 + errors[1] ** 2) ** 0.5 / 2)
    assert metric.protocol.content.keys() == {"task", "members", "chance"}
    assert metric.protocol.content["chance"]["boolq"] == {"value": 0.62, "table": 1}
    assert metric.n == 20


def test_the_headline_of_one_benchmark_has_that_ones_interval() -> None:
    base, own = [1, 1, 1, 0] * 10, [1, 1, 0, 0] * 10
    expected = interval_of_centred(base, own, 0.25)
    assert retained(results(a=own), results(a=base)).metrics[0].ends == pytest.approx((expected.low, expected.high))


def changes(own: Results, base: Results, protocol: Mapping[str, Any] = BASE) -> Differences:
    differences = Differences("forgetting")
    differences.add_changes(own, base, protocol)
    return differences


def test_a_change_is_paired_over_documents() -> None:
    differences = changes(results(a=[1, 0, 0, 1], b=[0, 1]), results(a=[1, 1, 1, 1], b=[1, 1]))
    found = by_name(differences.metrics)
    assert set(found) == {f"forgetting/{name}_acc{suffix}_change" for name in "ab" for suffix in ("", "_within")}
    change = found["forgetting/a_acc_change"]
    assert (change.value, change.n, change.items) == (-0.5, 4, ("a_acc_change",))
    assert change.stderr == pytest.approx(math.sqrt(4 * 0.25 / (4 * 3)))
    assert change.protocol.content == {"benchmark": "a", **BASE, "comparison": "forgetting/2"}
    assert differences.numbers[1].items() >= {"a_acc_change": -1, "a_acc_within_change": -1, "b_acc_change": 0}.items()
    assert differences.numbers[3] == {"a_acc_change": 0, "a_acc_within_change": 0}
    differences = changes(results(a=[-math.inf, 1]), results(a=[-math.inf, 0]))
    assert (differences.metrics[0].value, differences.numbers[0]["a_acc_change"]) == (0.5, 0), "the same infinity"


def test_a_ratio_keeps_its_weights() -> None:
    """Bits per byte: the bytes are the document's, whoever answers. Version 2 of a comparison is that of answers."""

    def of(*bits: float) -> Results:
        rows = enumerate(zip(bits, (4, 12), strict=True))
        items = [{"benchmark": "a", "index": index, "bits": value, "bytes": size} for index, (value, size) in rows]
        metric = MetricValue("a/bits_per_byte", 0, 0, 2, "bits/byte", "lower", Protocol({}), items=("bits", "bytes"))
        return Results([metric], items, {})

    differences = changes(of(8, 40), of(8, 8), {**BASE, "comparison": "forgetting/1"})
    [change] = differences.metrics
    assert change.protocol.content["comparison"] == "forgetting/1"
    assert (change.name, change.value) == ("forgetting/a_bits_per_byte_change", 2.0)
    assert change.items == ("a_bits_change", "a_bytes")
    assert differences.numbers == {0: {"a_bits_change": 0, "a_bytes": 4}, 1: {"a_bits_change": 32, "a_bytes": 12}}


def test_icl_is_of_the_accuracy() -> None:
    differences = Differences("forgetting")
    differences.add_icl(results(a=[0, 0, 1, 1]), results(a=[1, 0, 1, 1]), {"task": "forgetting"})
    icl, within = differences.metrics
    assert (icl.name, within.name) == ("forgetting/a_icl", "forgetting/a_icl_within")
    assert (icl.value, icl.items) == (0.25, ("a_acc_icl",))
