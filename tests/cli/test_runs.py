"""`evalsvc rename-run` and `evalsvc delete-run`."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from app_in_process import app_on_port
from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.errors import EvalsvcError


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    weights = tmp_path / "epoch_1.pt"
    weights.write_bytes(b"weights")
    with app_on_port(tmp_path / "data") as (url, _):
        body = {"run": "run-a", "step": 5, "uri": str(weights), "suites": []}
        httpx.post(f"{url}/v1/checkpoints", json=body).raise_for_status()
        yield url


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", url], catch_exceptions=True)


def test_renaming_and_deleting(url: str) -> None:
    assert run(url, "rename-run", "run-a", "run-z").stdout == "run run-a is called run-z\n"
    asked = run(url, "delete-run", "run-z")
    assert isinstance(asked.exception, EvalsvcError)
    assert asked.exception.message == (
        "run run-z with 1 checkpoints would be deleted for good; give --yes if that is meant"
    )
    deleted = run(url, "delete-run", "run-z", "--yes")
    assert deleted.exit_code == 0, deleted.output
    counts = "1 checkpoints, 0 evaluations, 0 values, 0 artifacts, 0 bytes of files"
    assert deleted.stdout == f"run run-z is deleted: {counts}\n"
    assert httpx.get(f"{url}/v1/runs").json() == {"runs": []}
