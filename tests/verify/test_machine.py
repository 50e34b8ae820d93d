"""All rows together: what fails, what cannot be tried, and the whole of it in a process of its own."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from evalsvc.checkpoints.weights import read_weights
from evalsvc.config import Settings
from evalsvc.doctor.checks import check_verification
from evalsvc.errors import AssetMissing, InvalidRequest, MissingPackage
from evalsvc.verify.agreement import COLUMNS, Agreement, Finding, Untried, all_agree, table_row, to_json
from evalsvc.verify.golden_files import GOLDEN, Golden, compare_arrays
from evalsvc.verify.machine import attempt, checks, describe_machine, prepared_device

RIGHT = Agreement.of_numbers("first", "a program", 1.0, 1.0, 0.0)


def failing(error: Exception) -> Iterator[Finding]:
    yield RIGHT
    raise error


def test_a_check_that_fails_is_a_row_that_differs() -> None:
    """A card that cannot run a kernel raises in the middle: what was compared before stays, and the rest is named."""
    error = RuntimeError("CUDA error: no kernel image is available\nCompile with …")
    kept, row = attempt("sampled codes", lambda golden: failing(error), Golden("cpu"))
    assert kept == RIGHT
    assert (row.quantity, row.verdict) == ("sampled codes", "WRONG")
    assert isinstance(row, Agreement)
    assert row.note == "failed: RuntimeError: CUDA error: no kernel image is available Compile with …"


@pytest.mark.parametrize("error", [AssetMissing("pull it"), MissingPackage("install it")])
def test_what_is_missing_is_not_tried(error: AssetMissing | MissingPackage) -> None:
    _, row = attempt("features", lambda golden: failing(error), Golden("cpu"))
    assert row == Untried("features", "golden values", error.message)


def test_every_golden_case_has_a_check_and_a_program_its_version() -> None:
    names = [name for name, _ in checks(Golden("cpu"))]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("open_lm run ") for name in names) == 6
    assert Golden("cpu").program("open_lm") == "golden, open_lm 9bb92ef"


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_said_before_anything_is_computed(name: str, one_thread: None) -> None:
    with pytest.raises(InvalidRequest, match=f"--device {name} cannot be used: .*; `evalsvc doctor` lists the devices"):
        prepared_device(name, 1)


def test_the_machine_is_described_by_what_moves_numbers() -> None:
    found = describe_machine("cpu")
    assert found["packages"].keys() >= {"torch", "numpy", "lm-eval"}
    assert found["device"].startswith("cpu (")
    json.dumps(found)


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


UNTRIED = Untried("fid", "torch-fidelity", "torch-fidelity is not installed")


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


def test_where_nothing_was_tried_nothing_is_right() -> None:
    assert [all_agree(findings) for findings in ([], [UNTRIED], [UNTRIED, RIGHT])] == [False, False, True]


def test_a_finding_is_a_row_and_a_document() -> None:
    findings = [UNTRIED, compare_arrays("logits", "golden values", [math.inf], [0.0], 1e-5)]
    assert [len(table_row(finding)) for finding in findings] == [len(COLUMNS)] * 2
    document = to_json(findings)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [item["verdict"] for item in document["findings"]] == ["not tried", "WRONG"]


FILES = sorted(path for path in GOLDEN.rglob("*") if path.is_file())


def test_the_wheel_stays_small_and_every_file_is_read_without_executing_anything() -> None:
    """Checkpoints of open_lm are pickles, which evalsvc reads by its own rules."""
    assert sum(path.stat().st_size for path in FILES) <= 2_000_000
    for path in FILES:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            assert read_weights(path).format == "open_lm epoch"
        else:
            assert path.name == "params.txt", path
