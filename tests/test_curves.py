"""Several runs on one curve: only what was measured alike, unless it is forced."""

from collections.abc import Mapping
from typing import Any

import pytest

from evalsvc.curves import join_histories, require_comparable
from evalsvc.errors import NotComparable

CONTENTS: dict[str, dict[str, Any]] = {
    "p1": {"data": "ab", "sampling": {"guidance_scale": 1.0}},
    "p3": {"data": "ab", "sampling": {"guidance_scale": 3.0}},
    "px": {"data": "cd", "sampling": {"guidance_scale": 1.0}},
}


def history(run: str, *series: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """Of (metric, protocol)."""
    said = {"variant": "raw", "unit": "", "direction": "lower", "x": [0, 25], "value": [2.0, 1.0], "differs": {}}
    return {
        "run": run,
        "x": "step",
        "series": [{"metric": metric, "protocol": protocol, **said, **fields} for metric, protocol in series],
    }


def join(*histories: Mapping[str, Any], force: bool = False) -> dict[str, Any]:
    return join_histories(histories, CONTENTS.__getitem__, force)


def curves(joined: Mapping[str, Any]) -> list[tuple[str, str | None, list[str]]]:
    return [(curve["metric"], curve["protocol"], [one["run"] for one in curve["series"]]) for curve in joined["curves"]]


def test_what_has_one_protocol_is_one_curve() -> None:
    joined = join(history("run-a", ("loss/text", "p1")), history("run-b", ("loss/text", "p1"), ("coco/fid", "p3")))
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-b"])]
    require_comparable(joined)


def test_another_protocol_is_another_curve_that_says_how_it_differs() -> None:
    joined = join(history("run-a", ("coco/fid", "p1"), ("coco/fid", "p3")), history("run-b", ("coco/fid", "p1")))
    assert curves(joined) == [("coco/fid", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-a"])]
    assert [curve["differs"] for curve in joined["curves"]] == [
        {"sampling.guidance_scale": 1.0},
        {"sampling.guidance_scale": 3.0},
    ]


def test_runs_without_a_protocol_in_common_are_refused_with_the_fields() -> None:
    joined = join(
        history("run-a", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-b", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-c", ("coco/fid", "p3"), ("coco/fid", "px")),
    )
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"])]
    with pytest.raises(
        NotComparable, match=r"coco/fid: run-a and run-c differ in sampling.guidance_scale 1.0 → 3.0; eval"
    ):
        require_comparable(joined)


def test_forced_they_are_on_one_curve_that_says_so() -> None:
    joined = join(history("run-a", ("coco/fid", "p1")), history("run-b", ("coco/fid", "px")), force=True)
    require_comparable(joined)
    assert curves(joined) == [("coco/fid", None, ["run-a", "run-b"])]
    assert [one["differs"] for one in joined["curves"][0]["series"]] == [{"data": "ab"}, {"data": "cd"}]


def test_a_run_without_values_is_no_stranger() -> None:
    assert join(history("run-a", ("coco/fid", "p1")), history("run-b"))["refused"] == {}
