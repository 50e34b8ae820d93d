"""`evalsvc run --reuse`: values are reused if all inputs of the task are the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalsvc.checkpoints.reference import CheckpointRef, hash_files
from evalsvc.compare.source import read_file
from evalsvc.errors import InvalidData
from evalsvc.spec.documents.reading import content_of, read
from evalsvc.spec.documents.results import ResultFile
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker.local import run_suite
from evalsvc.worker.reuse import Earlier, content_digest

Edit = Callable[[dict[str, Any]], object]


class Build:
    """A build of a CI after the first one, whose result is there."""

    def __init__(self, checkpoint: CheckpointRef, suite: Suite) -> None:
        self.checkpoint, self.suite = replace(checkpoint, identity=None), suite
        self.first = self.as_json(run_suite(suite, self.checkpoint, lambda *now: None))
        self.said: list[str] = []

    @staticmethod
    def as_json(result: ResultFile) -> dict[str, Any]:
        """A result as it is written and read again, without what its artifacts hold."""
        bare = replace(result, artifacts={task: [] for task in result.artifacts})
        content: dict[str, Any] = json.loads(json.dumps(content_of(bare)))
        return content

    def again(self, base: CheckpointRef | None = None) -> dict[str, Any]:
        self.said.clear()
        earlier = Earlier(read(ResultFile, self.first), "first.json", self.said.append)
        return self.as_json(run_suite(self.suite, self.checkpoint, lambda *now: None, base, earlier=earlier))

    def reused(self, base: CheckpointRef | None = None) -> list[str]:
        """Return the tasks whose values are reused."""
        origins = self.again(base)["origins"]
        return [task for task, origin in origins.items() if origin["reused_from"] is not None]


@pytest.fixture
def build(checkpoint: CheckpointRef, suite: Suite) -> Build:
    return Build(checkpoint, suite)


def test_what_is_unchanged_is_reused_and_what_failed_is_tried_again(build: Build) -> None:
    before, after = build.first, build.again()
    assert build.said == [
        "pairs: values are reused from first.json",
        "missing: measured again: first.json has no such task, or does not record the inputs of the task",
        "few: values are reused from first.json",
    ]
    assert {task: origin["reused_from"] for task, origin in after["origins"].items()} == {
        "pairs": "first.json",
        "few": "first.json",
    }
    assert list(after["errors"]) == ["missing"]
    for part in ("metrics", "protocols", "items", "warnings", "checkpoint", "suite"):
        assert after[part] == before[part]
    build.first = after
    assert build.reused() == ["pairs", "few"]


def test_other_weights_are_measured(build: Build, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(Path(build.checkpoint.path).read_bytes().replace(b"epoch", b"epock", 1))
    assert hash_files(other) != hash_files(Path(build.checkpoint.path))
    build.checkpoint = replace(build.checkpoint, path=str(other))
    build.again()
    assert build.said[0] == "pairs: measured again: checkpoint differs"


def test_a_copy_under_another_name_is_the_same_checkpoint(build: Build, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(build.checkpoint.path).read_bytes())
    build.checkpoint = replace(build.checkpoint, path=str(copy), label="another label")
    assert build.reused() == ["pairs", "few"]


def test_other_data_parameters_and_layout_are_measured(build: Build, tmp_path: Path) -> None:
    layout = dict(build.checkpoint.layout or {})
    build.checkpoint = replace(build.checkpoint, layout={**layout, "length": 64})
    build.again()
    assert "layout" in build.said[0]
    build.checkpoint = replace(build.checkpoint, layout={**layout, "text": {**layout["text"], "bos": 3}})
    build.again()
    assert build.said[0] == "pairs: measured again: bos differs"
    build.checkpoint = replace(build.checkpoint, layout=layout)
    lines = (tmp_path / "data.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join([*lines[:-1], '{"text_ids": [9, 9, 8]}']) + "\n")
    build.again()
    assert build.said[0] == "pairs: measured again: plan differs"
    tasks = [{"kind": "loss", "name": "pairs", "data": "data.jsonl", "shards": 1}]
    build.suite = parse_suite({"tasks": tasks}, "small", tmp_path)
    build.again()
    assert build.said == ["pairs: measured again: parameters, plan differ"]


def test_a_base_is_part_of_what_values_follow_from(build: Build) -> None:
    assert build.reused(base=build.checkpoint) == []
    assert "base's checkpoint" in build.said[0]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda first: first["metrics"][0].update(value=0.1), "first.json was changed after it was written"),
        (lambda first: first["metrics"][0].update(stderr=None), "first.json was changed after it was written"),
        (lambda first: first["metrics"][0].update(protocol="0" * 16), "first.json was changed after it was written"),
        (lambda first: first["metrics"].pop(0), "first.json was changed after it was written"),
        (lambda first: first["metrics"].append(first["metrics"][0]), "first.json was changed after it was written"),
        (lambda first: first["items"]["pairs"][0].update(nll_text=0.1), "first.json was changed after it was written"),
        (lambda first: first["items"].pop("pairs"), "first.json was changed after it was written"),
        (lambda first: first.update(protocols={}), "first.json was changed after it was written"),
        (
            lambda first: [content.update(estimator="ratio-of-sums/1") for content in first["protocols"].values()],
            "first.json was changed after it was written",
        ),
        (lambda first: first["origins"]["pairs"]["inputs"].update(evalsvc="0.0.1"), "evalsvc differs"),
        (lambda first: first["origins"]["pairs"]["inputs"].update(more="x"), "more differs"),
        (lambda first: first["origins"]["pairs"].update(inputs={}), "differ"),
        (lambda first: first["origins"].update(pairs=first["origins"]["few"]), "parameters, plan differ"),
        (lambda first: first.pop("origins"), "does not record the inputs of the task"),
    ],
)
def test_an_edited_result_is_measured_again(build: Build, edit: Edit, reason: str) -> None:
    true = build.first["metrics"]
    build.first = json.loads(json.dumps(build.first))
    edit(build.first)
    found = build.again()
    assert "pairs: measured again" in build.said[0]
    assert reason in build.said[0]
    assert found["metrics"] == true


def test_the_digest_holds_for_what_is_written(build: Build) -> None:
    document = read(ResultFile, build.first)
    assert content_digest(document, "pairs") == build.first["origins"]["pairs"]["content"]


def test_weights_that_are_replaced_while_they_are_measured_say_nothing_of_themselves(
    checkpoint: CheckpointRef, suite: Suite
) -> None:
    """The values would be those of the old file under the digest of the new one."""
    path = Path(checkpoint.path)
    content = path.read_bytes()

    def replace_file(*_: object) -> None:
        path.write_bytes(content.replace(b"epoch", b"epock", 1))

    result = run_suite(suite, replace(checkpoint, identity=None), replace_file)
    assert "pairs" not in result.origins


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"metrics": NaN}', b"[" * 100_000, b'{"metrics": [], "origins": {"pairs": 3}}'],
)
def test_a_file_that_is_no_result_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(InvalidData, match=r"result\.json"):
        read_file(file, ResultFile)


def test_an_artifact_of_the_file_brings_no_content(build: Build) -> None:
    """What a file says of an artifact is carried on; nothing is written to, or read from, where it points to."""
    build.first["artifacts"]["pairs"] = [{"name": "../../x", "path": "/etc/passwd", "content": "root"}]
    earlier = Earlier(read(ResultFile, build.first), "first.json", build.said.append)
    result = run_suite(build.suite, build.checkpoint, lambda *now: None, earlier=earlier)
    assert result.artifacts["pairs"] == [{"name": "../../x", "path": "/etc/passwd"}]
