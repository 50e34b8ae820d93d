"""Programs that tests start and that a machine may lack."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def find_program(name: str, package: str) -> str:
    """Return the path of a program; skip the test where it is missing, or fail where TESTS_REQUIRE names it.

    Args:
        package: Debian's package that has the program, for the reason.
    """
    if path := shutil.which(name):
        return path
    reason = f"needs {name} (Debian: apt-get install {package})"
    if name in os.environ.get("TESTS_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


def output_of(*command: str | Path, folder: Path | None = None) -> str:
    """Return what a program prints on both streams; AssertionError with that text if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=folder, text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
