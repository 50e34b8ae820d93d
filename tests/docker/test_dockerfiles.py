"""The Dockerfiles, as a checker reads them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_the_checker_finds_nothing(hadolint: str, file: Path) -> None:
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_of_the_checkout_but_the_package_reaches_a_build() -> None:
    """A list of what is left out would send every file that it does not know of, keys and data included."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in patterns if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {"LICENSE", "README.md", "evalsvc", "migrations", "pyproject.toml"}
