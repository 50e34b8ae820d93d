"""What a service recorded of a checkpoint, and who computes it a second time."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from example_documents import example

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import (
    CheckpointNotFound,
    InvalidData,
    InvalidRequest,
    InvalidSuite,
    ServiceUnreachable,
    UnknownName,
)
from evalsvc.spec import catalog
from evalsvc.spec.documents import Checkpoint, Parent
from evalsvc.spec.documents.reading import content_of
from evalsvc.spec.suite import TaskSpec
from evalsvc.verify import recorded
from evalsvc.verify.agreement import Finding, Untried
from evalsvc.verify.recorded import RecordedTask, VerifyRequest, read_recorded, verify_tasks

TASK = {"kind": "alignment", "name": "pairs", "data": "/data/pairs.jsonl"}

SUITE = {"name": "mine", "digest": "00", "tasks": [TASK]}

MEASURED = {"n": 3, "protocol": "f00", "task": "pairs", "stderr": None, "unit": "", "direction": "higher"}

RESULT: Mapping[str, Any] = {
    "checkpoint": {
        "id": 7,
        "path": "/elsewhere",
        "sha256": "ab" * 32,
        "label": "run 'run' step 3",
        "run": "run",
        "step": 3,
        "variant": "raw",
    },
    "state": "succeeded",
    "suite": SUITE,
    "evaluations": [{"id": 1, "suite": "mine", "state": "succeeded"}],
    "metrics": [
        {**MEASURED, "name": "pairs/cka", "value": 0.5},
        {**MEASURED, "name": "pairs/nan", "value": "NaN"},
    ],
    "protocols": {"f00": {"task": "alignment"}},
    "items": {"pairs": [{"index": 0}]},
    "artifacts": {},
    "provenance": {"pairs": {"device": "cpu"}},
}


def answered(weights: Path, result: Mapping[str, Any] = RESULT, **posted: Any) -> Client:
    """A client of a service that answers like this."""
    checkpoint = example(Checkpoint, uri=str(weights), layout={"rows": 4}, **posted)
    answers = {"/v1/runs/run/results/3": result, "/v1/checkpoints/7": content_of(checkpoint)}
    return Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=answers[request.url.path])))


def test_a_service_says_what_was_measured(weights: Path) -> None:
    [task] = read_recorded(answered(weights), "run@3", Settings.load())
    assert (task.checkpoint.path, task.checkpoint.label) == (str(weights), "run@3")
    assert task.checkpoint.sha256 == "ab" * 32, "other weights in the file's place are not to be verified"
    assert task.spec.parameters["data"] == "/data/pairs.jsonl"
    assert [(metric.name, str(metric.value)) for metric in task.metrics] == [("pairs/cka", "0.5"), ("pairs/nan", "nan")]
    assert task.metrics[0].protocol == {"task": "alignment"}
    assert (list(task.items), task.provenance) == ([{"index": 0}], {"device": "cpu"})


def test_weights_of_another_machine_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such file"):
        read_recorded(answered(tmp_path / "gone.pt"), "run@3", Settings.load())


def test_a_virtual_checkpoint_is_refused_with_the_way_out(weights: Path) -> None:
    with pytest.raises(InvalidRequest, match="--checkpoint EXPRESSION"):
        read_recorded(answered(weights, parents=[example(Parent, name="run@0")]), "run@3", Settings.load())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"metrics": [{"name": "pairs/cka"}]}, ServiceUnreachable),
        ({"items": {"pairs": "none"}}, ServiceUnreachable),
        ({"evaluations": {}}, ServiceUnreachable),
        ({"suite": {**SUITE, "tasks": [{**TASK, "name": "../pairs"}]}}, InvalidSuite),
        ({"suite": {**SUITE, "tasks": [{**TASK, "made_up": 1}]}}, InvalidSuite),
    ],
)
def test_a_strange_answer_is_refused(weights: Path, change: Mapping[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        read_recorded(answered(weights, {**RESULT, **change}), "run@3", Settings.load())


def request(*metrics: str) -> VerifyRequest:
    return VerifyRequest(Settings.load(), metrics)


BENCHMARKS = {"benchmarks": ("arc_easy", {"name": "piqa"})}
LANGUAGE = RecordedTask(CheckpointRef("none"), TaskSpec("language", "core", BENCHMARKS))
PLAIN = RecordedTask(CheckpointRef("none"), TaskSpec("no_such_kind", "pairs", {}))


def test_a_metric_goes_to_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark's metrics have its name, and not the task's."""
    monkeypatch.setattr(recorded, "VERIFIERS", {})
    for name in ("arc_easy/acc", "piqa/acc"):
        assert [finding.quantity for finding in verify_tasks([LANGUAGE, PLAIN], request(name))] == ["core"]
    assert [finding.quantity for finding in verify_tasks([LANGUAGE, PLAIN], request("pairs/x"))] == ["pairs"]
    assert len(verify_tasks([LANGUAGE, PLAIN], request())) == 2


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"pairs/…"):
        verify_tasks([PLAIN], request("pears/x"))


def fail(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    raise InvalidData("the captions are gone")


def test_what_cannot_be_computed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "VERIFIERS", {"no_such_kind": [f"{__name__}:fail"]})
    assert verify_tasks([PLAIN], request()) == [Untried("pairs", "", "the captions are gone")]
    assert verify_tasks([replace(PLAIN, spec=LANGUAGE.spec)], request())[0].verdict == "not tried"


def test_every_verifier_is_of_a_task_and_is_there() -> None:
    assert recorded.VERIFIERS.keys() <= set(catalog.names("tasks"))
    for target in (target for targets in recorded.VERIFIERS.values() for target in targets):
        module, _, name = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))
