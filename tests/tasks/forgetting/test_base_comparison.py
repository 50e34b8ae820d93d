import math
from collections.abc import Sequence

import pytest
from benchmark_results import by_name, results

from evalsvc.language.results import Results
from evalsvc.spec.protocol import MetricValue, Protocol
from evalsvc.tasks.forgetting.base_comparison import Differences

BASE = {"task": "forgetting", "base": "ab" * 32}


def test_a_change_is_paired_over_documents() -> None:
    own, base = results(a=[1, 0, 0, 1], b=[0, 1]), results(a=[1, 1, 1, 1], b=[1, 1])
    differences = Differences("forgetting")
    differences.add_changes(own, base, BASE)
    found = by_name(differences.metrics)
    assert set(found) == {f"forgetting/{name}_acc{suffix}_change" for name in "ab" for suffix in ("", "_within")}
    change = found["forgetting/a_acc_change"]
    assert (change.value, change.n, change.items) == (-0.5, 4, ("a_acc_change",))
    assert change.stderr == pytest.approx(math.sqrt(4 * 0.25 / (4 * 3)))
    assert change.protocol.content == {"benchmark": "a", **BASE, "comparison": "forgetting/2"}
    assert differences.numbers[1].items() >= {"a_acc_change": -1, "a_acc_within_change": -1, "b_acc_change": 0}.items()
    assert differences.numbers[3] == {"a_acc_change": 0, "a_acc_within_change": 0}


def test_a_ratio_keeps_its_weights() -> None:
    """Bits per byte: the bytes are the document's, whoever answers. Version 2 of a comparison is that of answers."""

    def of(bits: Sequence[float]) -> Results:
        items = [
            {"benchmark": "a", "index": index, "bits": value, "bytes": size}
            for index, (value, size) in enumerate(zip(bits, (4, 12), strict=True))
        ]
        metric = MetricValue("a/bits_per_byte", 0, 0, 2, "bits/byte", "lower", Protocol({}), items=("bits", "bytes"))
        return Results([metric], items, {})

    differences = Differences("forgetting")
    differences.add_changes(of([8, 40]), of([8, 8]), {**BASE, "comparison": "forgetting/1"})
    [change] = differences.metrics
    assert change.protocol.content["comparison"] == "forgetting/1"
    assert (change.name, change.value) == ("forgetting/a_bits_per_byte_change", 2.0)
    assert change.items == ("a_bits_change", "a_bytes")
    assert differences.numbers == {0: {"a_bits_change": 0, "a_bytes": 4}, 1: {"a_bits_change": 32, "a_bytes": 12}}


def test_a_base_that_is_all_text_is_the_same_within_text() -> None:
    """The language model before it was widened has one softmax, which is both."""
    differences = Differences("forgetting")
    differences.add_changes(results(a=[1, 0]), results(a=[1, 1], within=False), BASE)
    assert [metric.value for metric in differences.metrics] == [-0.5, -0.5]


def test_what_is_infinite_on_both_sides_has_not_changed() -> None:
    differences = Differences("forgetting")
    differences.add_changes(results(a=[-math.inf, 1]), results(a=[-math.inf, 0]), BASE)
    assert differences.metrics[0].value == 0.5
    assert differences.numbers[0]["a_acc_change"] == 0


def test_icl_is_of_the_accuracy() -> None:
    differences = Differences("forgetting")
    differences.add_icl(results(a=[0, 0, 1, 1]), results(a=[1, 0, 1, 1]), {"task": "forgetting"})
    found = by_name(differences.metrics)
    assert set(found) == {"forgetting/a_icl", "forgetting/a_icl_within"}
    assert found["forgetting/a_icl"].value == 0.25
    assert found["forgetting/a_icl"].items == ("a_acc_icl",)
