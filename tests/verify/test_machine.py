"""All rows together: what fails, what cannot be tried, and the whole of it in a process of its own."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from example_documents import example
from safetensors import safe_open

from evalsvc.checkpoints.weights import read_weights
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.doctor.checks import check_verification
from evalsvc.errors import (
    AssetMissing,
    CheckpointNotFound,
    InvalidRequest,
    InvalidSuite,
    MissingPackage,
    ServiceUnreachable,
)
from evalsvc.spec.documents import Checkpoint, Parent
from evalsvc.verify.agreement import COLUMNS, Agreement, Finding, Untried, all_agree, table_row, to_json
from evalsvc.verify.golden_checks import GOLDEN, Golden, compare_arrays
from evalsvc.verify.machine import attempt, checks, describe_machine, prepared_device
from evalsvc.verify.recorded import read_recorded

RIGHT = Agreement.of_numbers("first", "a program", 1.0, 1.0, 0.0)
UNTRIED = Untried("fid", "torch-fidelity", "torch-fidelity is not installed")


def failing(error: Exception) -> Iterator[Finding]:
    yield RIGHT
    raise error


def test_a_check_that_fails_is_a_row_that_differs() -> None:
    """A card that cannot run a kernel raises in the middle: what was compared before stays, and the rest is named."""
    error = RuntimeError("CUDA error: no kernel image is available\nCompile with …")
    kept, row = attempt("sampled codes", lambda golden: failing(error), Golden("cpu"))
    note = "failed: RuntimeError: CUDA error: no kernel image is available Compile with …"
    assert (kept, row.quantity, row.verdict, row.note) == (RIGHT, "sampled codes", "WRONG", note)
    for missing in (AssetMissing("pull it"), MissingPackage("install it")):
        _, row = attempt("features", lambda golden, missing=missing: failing(missing), Golden("cpu"))
        assert row == Untried("features", "golden values", missing.message)


def test_every_golden_case_has_a_check_and_programs_and_the_machine_are_described() -> None:
    names = [name for name, _ in checks(Golden("cpu"))]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("open_lm run ") for name in names) == 6
    assert Golden("cpu").program("open_lm") == "golden, open_lm 9bb92ef"
    found = describe_machine("cpu")
    assert found["packages"].keys() >= {"torch", "numpy", "lm-eval"}
    assert found["device"].startswith("cpu (")
    json.dumps(found)


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_said_before_anything_is_computed(name: str, one_thread: None) -> None:
    with pytest.raises(InvalidRequest, match=f"--device {name} cannot be used: .*; `evalsvc doctor` lists the devices"):
        prepared_device(name, 1)


def test_a_sound_installation_agrees_in_every_row_and_the_doctor_knows(
    child_process: None, inception_path: Path, tmp_path: Path
) -> None:
    """The whole command in a process of its own takes a minute, and leaves nothing but the result."""
    folder = tmp_path / "data"
    environment = os.environ | {"EVALSVC_ASSETS": str(inception_path.parent), "EVALSVC_DATA_DIR": str(folder)}
    command = [sys.executable, "-W", "error", "-m", "evalsvc.cli", "verify", "machine", "--device", "cpu"]
    command += ["--output", "-"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["agrees"], {finding["verdict"] for finding in document["findings"]}) == (True, {"ok"})
    print(f"verified in {document['seconds']} s, {document['cpu_seconds']} s of a core")
    assert document["cpu_seconds"] < 60, "of one core: what other processes take of the cores is not the command's"
    check = check_verification(Settings(data_dir=str(folder)))
    assert (check.ok, check.found.startswith("51 rows agree on cpu (")) == (True, True)
    # Statistics that were cached by a wrong installation must not be taken by a right one, nor the other way.
    assert [path.name for path in folder.iterdir()] == ["verify-machine.json"]


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance", "agrees"),
    [(1.0, 1.5, 0.5, True), (1.0, 1.6, 0.5, False), (math.nan, math.nan, 1.0, False)],
)
def test_numbers_agree_within_the_tolerance(ours: float, theirs: float, tolerance: float, agrees: bool) -> None:
    assert Agreement.of_numbers("fid", "a program", ours, theirs, tolerance).agrees == agrees
    assert compare_arrays("logits", "a program", [0.0, ours], [0.0, theirs], tolerance).agrees == agrees


def test_arrays_are_compared_element_by_element_and_those_of_other_shapes_do_not_agree() -> None:
    found = compare_arrays("logits", "a program", [[1.0, 2.0]], [[1.0, 2.25]], 0.1)
    assert (found.difference, found.verdict) == (0.25, "WRONG")
    found = compare_arrays("logits", "a program", [1.0], [[1.0]], 1e9)
    assert (found.agrees, found.note) == (False, "shapes [1] and [1, 1]")


def test_a_finding_is_a_row_and_a_document() -> None:
    findings = [UNTRIED, compare_arrays("logits", "golden values", [math.inf], [0.0], 1e-5)]
    assert [len(table_row(finding)) for finding in findings] == [len(COLUMNS)] * 2
    document = to_json(findings)
    assert [all_agree(some) for some in ([], [UNTRIED], [UNTRIED, RIGHT], findings)] == [False, False, True, False]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [item["verdict"] for item in document["findings"]] == ["not tried", "WRONG"]


def test_the_wheel_stays_small_and_every_file_is_read_without_executing_anything() -> None:
    """Checkpoints of open_lm are pickles, which evalsvc reads by its own rules."""
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            assert read_weights(path).format == "open_lm epoch"
        else:
            assert path.name == "params.txt", path


# what a service recorded of a checkpoint

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
