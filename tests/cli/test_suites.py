"""`evalsvc suites`."""

from pathlib import Path

from typer.testing import CliRunner, Result

from evalsvc.cli import app
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.miniature import ROOT
from evalsvc.spec.new_suite import new_suite
from evalsvc.spec.suite import load_suite


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["suites", *arguments])


def test_a_new_suite_is_printed_or_written(tmp_path: Path) -> None:
    assert run("new", "--task", "loss").stdout == new_suite(["loss"])
    assert run("new", "--task", "loss", "--brief").stdout == new_suite(["loss"], brief=True)
    path = tmp_path / "mine.yaml"
    written = run("new", "--task", "loss", "--task", "completions", "--output", str(path))
    assert written.exit_code == 0, written.output
    assert f"evalsvc suites check {path}" in written.stdout
    assert [task.kind for task in load_suite(path).tasks] == ["loss", "completions"]


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    error = run("new", "--task", "loss", "--output", str(tmp_path / "mine.yaml")).exception
    assert isinstance(error, InvalidRequest)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    error = run("new", "--task", "loss", "--output", str(tmp_path / "nowhere" / "mine.yaml")).exception
    assert isinstance(error, InvalidRequest)


def test_a_suite_is_checked_by_its_file_or_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(new_suite(["loss"]))
    wrong = run("check", str(path))
    assert wrong.exit_code == 1
    assert "- task 'loss': data: /path/to/sequences.jsonl stands for a path of your own" in wrong.stdout
    assert "suite mine: 1 problem\n" in wrong.stdout
    path.write_text(path.read_text().replace("/path/to/sequences.jsonl", str(ROOT / "heldout_pairs.jsonl")))
    right = run("check", str(path))
    assert (right.exit_code, right.stdout) == (0, "suite mine: nothing is wrong or missing in its 1 task\n")
    assert run("check", "mine", "--suites", str(tmp_path)).exit_code == 0
    assert isinstance(run("check", "mne", "--suites", str(tmp_path)).exception, UnknownName)


def test_suites_are_listed_with_where_they_are_from(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(new_suite(["loss"]))
    (tmp_path / "broken.yaml").write_text("tasks: [")
    shown = run("list", "--suites", str(tmp_path)).stdout
    assert "What this suite measures, in a line." in shown
    assert "not valid YAML" in shown
    assert "text-quick" in shown
