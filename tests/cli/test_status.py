"""`evalsvc status`: what it prints and its exit codes."""

import json
from pathlib import Path

from app_in_process import app_on_port
from typer.testing import CliRunner, Result

from evalsvc.cli import app


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["status", *arguments, "--url", url], catch_exceptions=True)


def test_ready_and_not(tmp_path: Path) -> None:
    with app_on_port(tmp_path / "data") as (url, state):
        shown = run(url)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.splitlines()[0].endswith(f"at {url}: ready, database sqlite")
        assert json.loads(run(url, "--json").stdout)["queue"]["queued"] == 0
        state.coordinator.processes = 0
        shown = run(url)
        assert (shown.exit_code, "NOT READY" in shown.stdout) == (1, True)
