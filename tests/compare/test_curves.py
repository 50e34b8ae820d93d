"""Several runs on one curve: only what was measured alike, unless it is forced."""

from typing import Any

import pytest

from evalsvc.compare.curves import JoinedHistories, join_histories, require_comparable, tabulate
from evalsvc.errors import NotComparable, UnknownName
from evalsvc.spec.documents.history import History, ImportSource, ValueSeries

CONTENTS: dict[str, dict[str, Any]] = {
    "p1": {"data": "ab", "sampling": {"guidance_scale": 1.0}},
    "p3": {"data": "ab", "sampling": {"guidance_scale": 3.0}},
    "px": {"data": "cd", "sampling": {"guidance_scale": 1.0}},
}


def history(run: str, *series: tuple[str, str], **fields: Any) -> History:
    """Of (metric, protocol)."""
    said: dict[str, Any] = {"variant": "raw", "unit": "", "direction": "lower", "baseline": None, "differs": {}}
    said |= {"x": [0, 25], "value": [2.0, 1.0], **{key: [None, None] for key in ("stderr", "low", "high", "n")}}
    said |= {"import_": None, "omitted": 0}
    return History(
        run=run,
        x="step",
        series=[ValueSeries(metric=metric, protocol=protocol, **said | fields) for metric, protocol in series],
        names=[],
        imports={"1": ImportSource(source=f"sheet of {run}", created_at="2026-02-03T10:11:12.131+00:00")},
        next_cursor=None,
    )


def join(*histories: History, force: bool = False) -> JoinedHistories:
    return join_histories(histories, CONTENTS.__getitem__, force)


def curves(joined: JoinedHistories) -> list[tuple[str, str | None, list[str]]]:
    return [(curve.metric, curve.protocol, [one.run for one in curve.series]) for curve in joined.curves]


def test_what_has_one_protocol_is_one_curve() -> None:
    joined = join(history("run-a", ("loss/text", "p1")), history("run-b", ("loss/text", "p1"), ("coco/fid", "p3")))
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-b"])]
    require_comparable(joined)
    assert join(history("run-a", ("coco/fid", "p1")), history("run-b")).refused == {}, "a run without values"


def test_another_protocol_is_another_curve_that_says_how_it_differs() -> None:
    joined = join(history("run-a", ("coco/fid", "p1"), ("coco/fid", "p3")), history("run-b", ("coco/fid", "p1")))
    assert curves(joined) == [("coco/fid", "p1", ["run-a", "run-b"]), ("coco/fid", "p3", ["run-a"])]
    assert [curve.differs for curve in joined.curves] == [{"sampling.guidance_scale": scale} for scale in (1.0, 3.0)]


def test_runs_without_a_protocol_in_common_are_refused_with_the_fields() -> None:
    joined = join(
        history("run-a", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-b", ("coco/fid", "p1"), ("loss/text", "p1")),
        history("run-c", ("coco/fid", "p3"), ("coco/fid", "px")),
    )
    assert curves(joined) == [("loss/text", "p1", ["run-a", "run-b"])]
    with pytest.raises(NotComparable, match=r"coco/fid: run-a and run-c differ in sampling.guidance_scale 1.0 → 3.0; "):
        require_comparable(joined)


def test_forced_they_are_on_one_curve_that_says_so() -> None:
    joined = join(history("run-a", ("coco/fid", "p1")), history("run-b", ("coco/fid", "px")), force=True)
    require_comparable(joined)
    assert curves(joined) == [("coco/fid", None, ["run-a", "run-b"])]
    assert [one.differs for one in joined.curves[0].series] == [{"data": "ab"}, {"data": "cd"}]


def test_points_along_a_metric_are_those_of_one_checkpoint() -> None:
    """A value of step 25 beside one of step 0 would be a point that no checkpoint has."""
    later = history("run-a", ("loss/text", "p1"), x=[25, 50], value=["NaN", 4.0], stderr=[0.1, None])
    errors = {"stderr": [0.2, 0.3], "low": [8.6, None], "high": [9.4, None]}
    image = history("run-a", ("loss/image", "p1"), value=[9.0, 3.0], import_=[None, 1], **errors)
    other = history("run-b", ("loss/image", "p1"), x=[25], value=[5.0], stderr=[None], low=[None], high=[None])
    none = {"low": None, "high": None}
    joined = join(image.model_copy(update={"series": image.series + later.series}), other)
    found = tabulate(joined, "loss/image")
    assert (found.x, found.against, found.columns) == ("step", "loss/image", ["loss/text"])
    first = {"value": 9.0, "stderr": 0.2, "low": 8.6, "high": 9.4, "import": None}
    both = {"value": 3.0, "stderr": 0.3, **none, "import": 1}, {"value": "NaN", "stderr": 0.1, **none, "import": None}
    assert [(row["run"], row["step"], row["loss/image"], row["loss/text"]) for row in found.rows] == [
        ("run-a", 0, first, None),
        ("run-a", 25, *both),
        ("run-b", 25, {"value": 5.0, "stderr": None, **none, "import": None}, None),
    ]
    assert found.imports["run-a"]["1"].source == "sheet of run-a"


def test_an_axis_is_measured_in_one_way() -> None:
    both = history("run-a", ("loss/image", "p1"), ("loss/image", "p3"), ("loss/text", "p1"), stderr=[0.1, 0.1])
    with pytest.raises(NotComparable, match=r"guidance_scale=1.0; sampling.guidance_scale=3.0"):
        tabulate(join(both), "loss/image")
    columns = [f"loss/image (sampling.guidance_scale={scale})" for scale in (1.0, 3.0)]
    assert tabulate(join(both), "loss/text").columns == columns
    with pytest.raises(UnknownName, match="did you mean 'loss/text'"):
        tabulate(join(both), "loss/txt")
    strangers = join(history("run-a", ("loss/image", "p1")), history("run-b", ("loss/image", "px")))
    with pytest.raises(NotComparable, match="loss/image is no axis for these runs: run-a and run-b differ in data"):
        tabulate(strangers, "loss/image")
