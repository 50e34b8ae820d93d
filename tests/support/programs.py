"""Programs that tests start and that a machine may lack."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import evalsvc


def find_program(name: str, origin: str, requirement: str | None = None) -> str:
    """Return the path of a program, also next to the tests' Python, or say that it is lacking, and what brings it."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return shutil.which(name, path=folders) or lacking(requirement or name, f"needs {name}, of {origin}")


def lacking(requirement: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where TESTS_REQUIRE names the requirement."""
    if requirement in os.environ.get("TESTS_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


def require_index(folder: Path) -> None:
    """Skip the test where pip reaches no package index, or fail it where TESTS_REQUIRE names `index`."""
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "probe"), "h11"]
    answer = subprocess.run(probe, capture_output=True, text=True, check=False)
    if answer.returncode:
        lacking("index", f"needs pip and a package index: {answer.stderr.strip().splitlines()[-1]}")


def output_of(*command: str | Path, folder: Path | None = None) -> str:
    """Return what a program prints on both streams; AssertionError with that text if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=folder, text=True, capture_output=True, check=False, timeout=150)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def environment_without(package: str, folder: Path, *more: Path) -> dict[str, str]:
    """The environment of this process, for a Python that cannot import `package`; `more` is for its path."""
    folder.mkdir(exist_ok=True)
    # An entry of None stops every import and makes `find_spec` return None, in the child's own children too.
    (folder / "sitecustomize.py").write_text(f"import sys\n\nsys.modules[{package!r}] = None\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, *more)))}


def in_triton(script: str, what: str, *, interpret: bool) -> dict[str, Any]:
    """Return what a script of this folder prints, in a process that finds Triton, which torch for CPUs does not
    bring."""
    triton, here = Path(sys.prefix) / "triton", Path(__file__).parent
    if not (triton / "triton").is_dir():
        lacking("triton", f"needs Triton: pip install --no-deps --target {triton} triton")
    paths = os.pathsep.join(map(str, [triton, Path(evalsvc.__file__).parents[1], here]))
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command: list[str | Path] = [sys.executable, "-P", here / script, what]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
