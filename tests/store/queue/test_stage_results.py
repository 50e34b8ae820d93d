"""What rows hold of stages: the form is that of every version, so that a queue goes on after an upgrade."""

from typing import Any

import msgpack
import pytest

from evalsvc.files.artifacts import Artifact, KeptArtifact
from evalsvc.files.codec import Codec, Unreadable
from evalsvc.files.outputs import OutputFile
from evalsvc.messages import KeptResult, LookResult, MergeResult, PlanResult
from evalsvc.spec.looks import Until
from evalsvc.store.queue.transitions import LOOK, MERGE, PLAN, from_row, to_row

METRICS = {"metrics": [{"name": "coco/fid", "value": "NaN"}], "protocols": {"ab": {"limit": None}}}
ARTIFACT = {"kind": "grid", "name": "g.png", "media_type": "image/png", "details": {}, "sha256": "ab", "size": 3}

STORED: list[tuple[Codec[Any], Any, dict[str, Any]]] = [
    (
        PLAN,
        PlanResult([{"index": 0, "units": 10}], 10, "images", [(1, 10)], Until(stderr=0.1, metric="kid")),
        {
            "shards": [{"index": 0, "units": 10}],
            "total": 10,
            "unit": "images",
            "looks": [[1, 10]],
            "until": {"stderr": 0.1, "metric": "kid"},
        },
    ),
    (LOOK, LookResult(METRICS["metrics"], METRICS["protocols"]), METRICS),
    (
        MERGE,
        KeptResult(METRICS["metrics"], METRICS["protocols"], b"\0", {"n": 1}, [KeptArtifact(**ARTIFACT)], []),
        {**METRICS, "items": b"\0", "notes": {"n": 1}, "artifacts": [ARTIFACT], "warnings": []},
    ),
]


@pytest.mark.parametrize(("codec", "result", "document"), STORED, ids=["plan", "look", "merge"])
def test_a_result_is_stored_as_its_fields(codec: Codec[Any], result: Any, document: dict[str, Any]) -> None:
    assert to_row(result) == msgpack.packb(document)
    assert from_row(codec, msgpack.packb(document)) == result


def test_a_plan_of_a_version_without_looks_is_read() -> None:
    old = {"shards": [{"units": 4}], "total": 4, "unit": "sequences"}
    assert from_row(PLAN, msgpack.packb(old)) == PlanResult([{"units": 4}], 4, "sequences")


def test_what_is_no_result_is_refused() -> None:
    """A file's name in the place of a plan, or artifacts that lie nowhere yet, would be found out by the merge."""
    for stored in (None, OutputFile(1, 2, 3, "ab", 4), b"\x80"):
        with pytest.raises(Unreadable, match="no PlanResult"):
            from_row(PLAN, stored)
    with pytest.raises(TypeError, match="the value is a MergeResult, not a LookResult"):
        to_row(MergeResult([], {}, [], {}, [Artifact("grid", "g.png", "image/png", b"png")], []))
