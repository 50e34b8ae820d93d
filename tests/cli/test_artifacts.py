"""`evalsvc artifacts keep` and `prune`."""

from pathlib import Path

import pytest
from app_in_process import app_on_port
from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.client import Client
from evalsvc.errors import UnknownName


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


def test_a_metric_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """The rule was taken, and pruned nothing for ever, or the best with the rest."""
    with app_on_port(tmp_path / "data") as (url, _), Client(url) as client:
        client.import_values(
            "run-a", "test", [{"metric": "coco/fid", "step": [1], "value": [2.0], "direction": "lower"}]
        )
        refused = run(url, "keep", "run-b", "--best", "coco/fdi")
        assert isinstance(refused.exception, UnknownName)
        assert "no metric is named 'coco/fdi'; did you mean 'coco/fid'?" in refused.exception.message
        assert run(url, "keep", "run-b", "--best", "coco/fid").exit_code == 0
        assert [item["name"] for item in client.runs()] == ["run-a", "run-b"]


@pytest.mark.parametrize("arguments", [["--default", "--last", "3"]])
def test_wrong_use(arguments: list[str]) -> None:
    assert "leave the others out" in str(run("http://127.0.0.1:9", "keep", "run-a", *arguments).exception)
