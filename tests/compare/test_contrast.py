"""Which values of two results are held against each other, and how much worse one of them is."""

import math
from typing import Any

import pytest
from gate_documents import result, value

from evalsvc.compare.contrast import Contrast, contrast_results
from evalsvc.spec.protocol import MetricValue, Protocol


def guided(scale: float, number: float = 1.0, **more: Any) -> MetricValue:
    return value("coco/fid", number, protocol=Protocol({"guidance_scale": scale, "data": "ab", **more}))


def protocols(contrast: Contrast) -> tuple[str | None, str | None]:
    """Of both sides."""
    ids = [side and side.metric.protocol for side in (contrast.a, contrast.b)]
    return ids[0], ids[1]


def test_each_value_is_held_against_one_other() -> None:
    """A stranger that stood against two values looked as if both had been measured in another way."""
    a, b = [guided(1.0), guided(3.0), guided(9.0)], [guided(5.0, seed=1), guided(9.0), guided(3.5)]
    found = list(contrast_results(result(*a), result(*b)))
    ours, theirs = [[metric.protocol.id for metric in side] for side in (a, b)]
    assert [protocols(one) for one in found] == [
        (ours[0], theirs[2]),
        (ours[1], theirs[0]),
        (ours[2], theirs[1]),
    ]
    assert [one.verdict(0.95) for one in found] == ["other_protocol", "other_protocol", "indistinguishable"]
    assert [set(one.differing) for one in found] == [{"guidance_scale"}, {"guidance_scale", "seed"}, set()]
    lonely = list(contrast_results(result(*a[:2]), result(b[2])))
    assert [protocols(one) for one in lonely] == [(ours[0], theirs[2]), (ours[1], None)]


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (1.0, 1.5, 0.5),
        (1.0, math.nan, math.inf),
        (math.nan, math.nan, 0.0),
        (math.inf, math.nan, 0.0),
        (-math.inf, 1.0, math.inf),
        (1.0, -math.inf, -math.inf),
    ],
)
def test_nan_is_as_bad_as_a_value_gets(before: float, after: float, worse: float) -> None:
    [found] = contrast_results(result(value("a/b", before)), result(value("a/b", after)))
    assert found.worse(higher_is_better=False) == worse
    [found] = contrast_results(result(value("a/b", -before)), result(value("a/b", -after)))
    assert found.worse(higher_is_better=True) == worse


def test_a_contrast_is_kept_without_the_results_per_item() -> None:
    """Of two runs with a thousand steps all items would be in memory."""
    metric = value("t/x", 4.5, 0.1, n=10, items=("x",))
    side = result(metric, items={"t": [{"index": index, "x": float(index)} for index in range(10)]})
    [found] = contrast_results(side, side)
    kept = found.without_items()
    assert kept.a is not None
    assert not kept.a.result.document.items
    assert (kept.distance, kept.verdict(0.95)) == (found.distance, found.verdict(0.95))
