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


def test_every_golden_case_has_a_check() -> None:
    names = [name for name, _ in checks(Golden("cpu"))]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("open_lm run ") for name in names) == 6


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_said_before_anything_is_computed(name: str, one_thread: None) -> None:
    with pytest.raises(InvalidRequest, match=f"--device {name} cannot be used: .*; `evalsvc doctor` lists the devices"):
        prepared_device(name, 1)


def test_the_machine_is_described_by_what_moves_numbers() -> None:
    found = describe_machine("cpu")
    assert found["packages"].keys() >= {"torch", "numpy", "lm-eval"}
    assert found["device"].startswith("cpu (")
    json.dumps(found)


@pytest.fixture(scope="module")
def process(
    child_process: None, inception_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The whole command in a process of its own, and its data folder."""
    folder = tmp_path_factory.mktemp("verify")
    settings = {"EVALSVC_ASSETS": str(inception_path.parent), "EVALSVC_DATA_DIR": str(folder / "data")}
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "evalsvc.cli",
        "verify",
        "machine",
        "--device",
        "cpu",
        "--output",
        "-",
    ]
    environment = os.environ | settings
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done, folder / "data"


def test_a_sound_installation_agrees_in_every_row(process: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = process
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["agrees"] is True
    assert len(document["findings"]) >= 50
    assert {finding["verdict"] for finding in document["findings"]} == {"ok"}


def test_it_takes_two_minutes_at_most(process: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Of one core: what other processes take of the cores is not the command's."""
    document = json.loads(process[0].stdout)
    print(f"verified in {document['seconds']} s, {document['cpu_seconds']} s of a core")
    assert document["cpu_seconds"] < 60


def test_the_doctor_knows_of_it(process: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    check = check_verification(Settings(data_dir=str(process[1])))
    assert check.ok
    assert check.found.startswith("51 rows agree on cpu (")


def test_nothing_is_left_but_the_result(process: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Statistics that were cached by a wrong installation must not be taken by a right one, nor the other way."""
    assert [path.name for path in process[1].iterdir()] == ["verify-machine.json"]


UNTRIED = Untried("fid", "torch-fidelity", "torch-fidelity is not installed")


def test_numbers_agree_within_the_tolerance() -> None:
    assert Agreement.of_numbers("fid", "a program", 1.0, 1.5, 0.5).agrees
    assert not Agreement.of_numbers("fid", "a program", 1.0, 1.6, 0.5).agrees


def test_nan_never_agrees() -> None:
    assert not Agreement.of_numbers("fid", "a program", math.nan, math.nan, 1.0).agrees
    assert not compare_arrays("logits", "a program", [0.0, math.nan], [0.0, 0.0], 1.0).agrees


def test_arrays_are_compared_element_by_element() -> None:
    found = compare_arrays("logits", "a program", [[1.0, 2.0]], [[1.0, 2.25]], 0.1)
    assert (found.difference, found.verdict) == (0.25, "WRONG")


def test_arrays_of_other_shapes_do_not_agree() -> None:
    found = compare_arrays("logits", "a program", [1.0], [[1.0]], 1e9)
    assert not found.agrees
    assert found.note == "shapes [1] and [1, 1]"


def test_where_nothing_was_tried_nothing_is_right() -> None:
    right = Agreement.of_numbers("fid", "a program", 1.0, 1.0, 0.0)
    assert not all_agree([])
    assert not all_agree([UNTRIED])
    assert all_agree([UNTRIED, right])


def test_a_finding_is_a_row_and_a_document() -> None:
    findings = [UNTRIED, compare_arrays("logits", "golden values", [math.inf], [0.0], 1e-5)]
    assert [len(table_row(finding)) for finding in findings] == [len(COLUMNS)] * 2
    document = to_json(findings)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert [item["verdict"] for item in document["findings"]] == ["not tried", "WRONG"]


FILES = sorted(path for path in GOLDEN.rglob("*") if path.is_file())


def test_the_wheel_stays_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 2_000_000


def test_every_file_is_read_without_executing_anything() -> None:
    """Checkpoints of open_lm are pickles, which evalsvc reads by its own rules."""
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


def test_a_program_is_named_with_its_version() -> None:
    assert Golden("cpu").program("open_lm") == "golden, open_lm 9bb92ef"
