"""`evalsvc tasks`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.cli.tasks import describe_task, task_summaries
from evalsvc.errors import UnknownName
from evalsvc.spec import catalog

PLUG_INS = Path(__file__).parents[1] / "support" / "plug_ins"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tasks", *arguments])


def test_all_kinds_are_a_row_of_a_table_each() -> None:
    shown = run()
    assert shown.exit_code == 0, shown.output
    for kind in catalog.COMPONENTS["tasks"]:
        assert f"\n{kind} " in shown.stdout
    assert "evalsvc suites new --task KIND" in shown.stdout
    kinds = [item["kind"] for item in json.loads(run("--format", "json").stdout)]
    assert kinds == catalog.names("tasks")


def test_one_kind_has_its_parameters_and_metrics() -> None:
    shown = run("text_to_image").stdout
    for words in ("needs: captions, the image decoder", "until.stderr", "number, above 0", "fid_infinity"):
        assert words in shown
    assert json.loads(run("text_to_image", "--format", "json").stdout) == describe_task("text_to_image").to_json()


def test_an_unknown_kind_has_near_misses() -> None:
    error = run("los").exception
    assert isinstance(error, UnknownName)
    assert "did you mean 'loss'" in error.message


@pytest.mark.parametrize("kind", catalog.COMPONENTS["tasks"])
def test_a_kind_says_what_it_measures_and_needs(kind: str) -> None:
    task = describe_task(kind)
    assert task.measures.endswith(".")
    assert task.needs
    assert task.metrics


def test_a_plug_ins_task_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says of its needs and metrics what it wants, or nothing."""
    monkeypatch.syspath_prepend(PLUG_INS)
    assert ("letters", "Counts letters.", "") in task_summaries()
    shown = run("letters").stdout
    for words in ("letters: Counts letters.", "times", "By how much the number is multiplied."):
        assert words in shown
    assert "needs:" not in shown


def test_a_plug_in_that_cannot_be_imported_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.COMPONENTS["tasks"], "broken", "evalsvc_no_such_package:Task")
    found = {kind: needs for kind, _, needs in task_summaries()}
    assert "needs the package 'evalsvc_no_such_package'" in found["broken"]
    assert found["loss"]
