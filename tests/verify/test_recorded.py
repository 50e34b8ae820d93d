"""What a service recorded of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from example_documents import example

from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotFound, InvalidRequest, InvalidSuite, ServiceUnreachable
from evalsvc.spec.documents import Checkpoint, Parent
from evalsvc.verify.recorded import read_recorded

TASK = {"kind": "alignment", "name": "pairs", "data": "/data/pairs.jsonl"}

SUITE = {"name": "mine", "digest": "00", "tasks": [TASK]}

MEASURED = {"n": 3, "protocol": "f00", "task": "pairs", "stderr": None, "unit": "", "direction": "higher"}

STEP = {"run": "run", "step": 3, "variant": "raw"}

RESULT: Mapping[str, Any] = {
    "checkpoint": {"id": 7, "path": "/elsewhere", "sha256": "ab" * 32, "label": "run 'run' step 3", **STEP},
    "state": "succeeded",
    "suite": SUITE,
    "evaluations": [{"id": 1, "suite": "mine", "state": "succeeded"}],
    "metrics": [{**MEASURED, "name": "pairs/cka", "value": 0.5}, {**MEASURED, "name": "pairs/nan", "value": "NaN"}],
    "protocols": {"f00": {"task": "alignment"}},
    "items": {"pairs": [{"index": 0}]},
    "artifacts": {},
    "provenance": {"pairs": {"device": "cpu"}},
}


def answered(weights: Path, result: Mapping[str, Any] = RESULT, **posted: Any) -> Client:
    """A client of a service that answers like this."""
    checkpoint = example(Checkpoint, uri=str(weights), layout={"rows": 4}, **posted)
    answers = {"/v1/runs/run/results/3": result, "/v1/checkpoints/7": checkpoint.model_dump()}
    return Client(transport=httpx2.MockTransport(lambda request: httpx2.Response(200, json=answers[request.url.path])))


def test_a_service_says_what_was_measured(weights: Path) -> None:
    [task] = read_recorded(answered(weights), "run@3", Settings.load())
    assert (task.checkpoint.path, task.checkpoint.label) == (str(weights), "run@3")
    assert task.checkpoint.sha256 == "ab" * 32, "other weights in the file's place are not to be verified"
    assert task.spec.parameters["data"] == "/data/pairs.jsonl"
    assert list(task.protocols) == [{"task": "alignment"}]
    assert (list(task.items), task.provenance) == ([{"index": 0}], {"device": "cpu"})


def test_weights_of_another_machine_and_virtual_ones_are_refused(weights: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such file"):
        read_recorded(answered(weights.with_name("gone.pt")), "run@3", Settings.load())
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
