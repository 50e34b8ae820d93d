"""`evalsvc artifacts keep` and `prune`."""

from pathlib import Path

import pytest
from app_in_process import app_on_port
from typer.testing import CliRunner, Result

from evalsvc.cli import app


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["artifacts", *arguments, "--url", url], catch_exceptions=True)


def test_a_rule_is_given_shown_and_taken_away(tmp_path: Path) -> None:
    with app_on_port(tmp_path / "data") as (url, _):
        given = run(url, "keep", "run-a", "--last", "5", "--every", "1000", "--days", "30", "--best", "coco/fid")
        shown = "run run-a keeps last 5, every 1000, days 30.0, best coco/fid (the run's rule)\n"
        assert given.stdout == shown, given.output
        assert run(url, "keep", "run-a").stdout == shown
        assert run(url, "prune").stdout == "0 artifacts are pruned, 0 bytes freed\n"
        assert run(url, "prune", "--dry-run").stdout == "0 artifacts would be pruned, 0 bytes\n"
        assert run(url, "keep", "run-a", "--default").stdout == "run run-a keeps all artifacts\n"


@pytest.mark.parametrize("arguments", [["--default", "--last", "3"]])
def test_wrong_use(arguments: list[str]) -> None:
    assert "leave the others out" in str(run("http://127.0.0.1:9", "keep", "run-a", *arguments).exception)
