import math
from collections.abc import Mapping, Sequence

import pytest

from evalsvc.language.results import Results
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.protocol import MetricValue, Protocol
from evalsvc.tasks.base_comparison import Differences, text_retained

BASE = {"task": "forgetting", "base": "ab" * 32}


def results(chances: Mapping[str, float] | None = None, within: bool = True, **columns: Sequence[float]) -> Results:
    """As a benchmark task finds them: an accuracy per benchmark over the given documents, 0 or 1."""
    metrics, items = [], []
    for benchmark, values in columns.items():
        for suffix in ("", "_within") if within else ("",):
            accuracy = ratio_of_sums(values, [1] * len(values))
            assert accuracy is not None
            protocol, chance = Protocol({"benchmark": benchmark}), (chances or {}).get(benchmark, 0.25)
            found = accuracy.value, accuracy.stderr, accuracy.n, "fraction", "higher"
            metrics.append(
                MetricValue(f"{benchmark}/acc{suffix}", *found, protocol, chance, (f"acc{suffix}",))  # type: ignore[arg-type]
            )
        for index, value in enumerate(values):
            item = {"benchmark": benchmark, "index": index, "acc": value}
            items.append(item | ({"acc_within": value} if within else {}))
    return Results(metrics, items, {})


def by_name(metrics: Sequence[MetricValue]) -> dict[str, MetricValue]:
    return {metric.name: metric for metric in metrics}


def test_a_change_is_paired_over_documents() -> None:
    own, base = results(a=[1, 0, 0, 1], b=[0, 1]), results(a=[1, 1, 1, 1], b=[1, 1])
    differences = Differences("forgetting")
    differences.add_changes(own, base, BASE)
    found = by_name(differences.metrics)
    assert set(found) == {f"forgetting/{name}_acc{suffix}_change" for name in "ab" for suffix in ("", "_within")}
    change = found["forgetting/a_acc_change"]
    assert (change.value, change.n, change.items) == (-0.5, 4, ("a_acc_change",))
    assert change.stderr == pytest.approx(math.sqrt(4 * 0.25 / (4 * 3)))
    assert change.protocol.content == {"benchmark": "a", **BASE}
    assert differences.numbers[1] == {
        "a_acc_change": -1,
        "a_acc_within_change": -1,
        "b_acc_change": 0,
        "b_acc_within_change": 0,
    }
    assert differences.numbers[3] == {"a_acc_change": 0, "a_acc_within_change": 0}


def test_a_ratio_keeps_its_weights() -> None:
    """Bits per byte: the bytes are the document's, whoever answers."""

    def of(bits: Sequence[float]) -> Results:
        items = [
            {"benchmark": "a", "index": index, "bits": value, "bytes": size}
            for index, (value, size) in enumerate(zip(bits, (4, 12), strict=True))
        ]
        metric = MetricValue("a/bits_per_byte", 0, 0, 2, "bits/byte", "lower", Protocol({}), items=("bits", "bytes"))
        return Results([metric], items, {})

    differences = Differences("forgetting")
    differences.add_changes(of([8, 40]), of([8, 8]), BASE)
    [change] = differences.metrics
    assert (change.name, change.value) == ("forgetting/a_bits_per_byte_change", 2.0)
    assert change.items == ("a_bits_change", "a_bytes")
    assert differences.numbers == {0: {"a_bits_change": 0, "a_bytes": 4}, 1: {"a_bits_change": 32, "a_bytes": 12}}


def test_a_base_that_is_all_text_is_the_same_within_text() -> None:
    """The language model before it was widened has one softmax, which is both."""
    differences = Differences("forgetting")
    differences.add_changes(results(a=[1, 0]), results(a=[1, 1], within=False), BASE)
    assert [metric.value for metric in differences.metrics] == [-0.5, -0.5]
    assert text_retained("f", results(a=[1, 1, 0, 1]), results(a=[1] * 4, within=False), {}).metrics[1].value == (
        pytest.approx((0.75 - 0.25) / 0.75)
    )


def test_what_is_infinite_on_both_sides_has_not_changed() -> None:
    differences = Differences("forgetting")
    differences.add_changes(results(a=[-math.inf, 1]), results(a=[-math.inf, 0]), BASE)
    assert differences.metrics[0].value == 0.5
    assert differences.numbers[0]["a_acc_change"] == 0


def test_only_what_the_base_could_do_counts_as_retained() -> None:
    """Two standard errors above chance: of a coin flipped ten times nothing can be retained."""
    chances = {"hard": 0.25, "easy": 0.5, "open": 0.0}
    base = results(chances, hard=[1, 0, 0, 0] * 5, easy=[1, 1, 1, 0] * 10, open=[1, 0] * 10)
    own = results(chances, hard=[0, 0, 0, 0] * 5, easy=[1, 1, 0, 0] * 10, open=[1, 0, 1, 1] * 5)
    found = text_retained("forgetting", own, base, BASE)
    assert (found.counted, found.at_chance) == (["easy", "open"], ["hard"])
    metric = by_name(found.metrics)["forgetting/text_retained"]
    assert metric.value == pytest.approx(((0.5 - 0.5) / (0.75 - 0.5) + 0.75 / 0.5) / 2)
    assert (metric.n, metric.unit, metric.direction, metric.baseline) == (60, "fraction", "higher", 0.0)
    assert metric.protocol.content["members"].keys() == {"easy/acc", "open/acc"}
    assert metric.protocol.content["base"] == BASE["base"]


def test_nothing_above_chance_gives_no_headline() -> None:
    found = text_retained("forgetting", results(a=[1, 0, 0, 1]), results(a=[1, 0, 0, 0]), BASE)
    assert (found.metrics, found.counted, found.at_chance) == ([], [], ["a"])


def test_icl_is_of_the_accuracy() -> None:
    differences = Differences("forgetting")
    differences.add_icl(results(a=[0, 0, 1, 1]), results(a=[1, 0, 1, 1]), {"task": "forgetting"})
    found = by_name(differences.metrics)
    assert set(found) == {"forgetting/a_icl", "forgetting/a_icl_within"}
    assert found["forgetting/a_icl"].value == 0.25
    assert found["forgetting/a_icl"].items == ("a_acc_icl",)
