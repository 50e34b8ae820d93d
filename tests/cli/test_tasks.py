"""`evalsvc tasks`."""

import json

from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.errors import UnknownName
from evalsvc.spec import catalog
from evalsvc.tasks.reference_page import describe_task, page, section


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


def test_the_page_is_what_markdown_prints() -> None:
    assert run("--format", "markdown").stdout == page()
    assert run("loss", "--format", "markdown").stdout.rstrip("\n") == section(describe_task("loss"))


def test_an_unknown_kind_has_near_misses() -> None:
    error = run("los").exception
    assert isinstance(error, UnknownName)
    assert "did you mean 'loss'" in error.message
