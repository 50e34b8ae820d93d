"""`evalsvc suites`."""

import json
from pathlib import Path
from typing import Any

import pytest
from console import Command
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


def test_values_are_set_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first suite took an editor, although its author knew the one path that mattered."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes((ROOT / "heldout_pairs.jsonl").read_bytes())
    (tmp_path / "4").mkdir()
    options = ["--set", "data=pairs.jsonl", "--set", "limit=4", "--output", "suites/mine.yaml"]
    written = run("new", "--task", "loss", *options)
    assert written.stdout == "wrote suites/mine.yaml; run: evalsvc suites check suites/mine.yaml\n"
    [task] = load_suite(tmp_path / "suites" / "mine.yaml").tasks
    assert (task.parameters["data"], task.parameters["limit"]) == (str(tmp_path / "pairs.jsonl"), 4)
    assert run("check", "suites/mine.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("dat=pairs.jsonl", "no parameter is named 'dat'; did you mean 'data'?"),
        ("name=mine", "no parameter is named 'name'"),
        ("limit", "--set limit: no value is given; write NAME=VALUE"),
        ("limit=[4", "--set limit=[4: the value is not valid YAML"),
    ],
)
def test_a_value_that_cannot_be_set_is_named(assignment: str, words: str) -> None:
    assert words in str(run("new", "--task", "loss", "--set", assignment).exception)


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    error = run("new", "--task", "loss", "--output", str(tmp_path / "mine.yaml")).exception
    assert isinstance(error, InvalidRequest)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    error = run("new", "--task", "loss", "--output", str(tmp_path / "nowhere" / "suites" / "mine.yaml")).exception
    assert isinstance(error, InvalidRequest)


def test_a_suite_is_checked_by_its_file_or_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(new_suite(["loss"]))
    wrong = run("check", str(path))
    assert wrong.exit_code == 1
    assert (
        "- task 'loss': data: /path/to/sequences.jsonl is a placeholder; replace it with your own path" in wrong.stdout
    )
    assert "suite mine: 1 problem\n" in wrong.stdout
    path.write_text(path.read_text().replace("/path/to/sequences.jsonl", str(ROOT / "heldout_pairs.jsonl")))
    right = run("check", str(path))
    assert (right.exit_code, right.stdout) == (0, "suite mine: nothing is wrong or missing in its 1 task\n")
    assert run("check", "mine", "--suites", str(tmp_path)).exit_code == 0
    assert isinstance(run("check", "mne", "--suites", str(tmp_path)).exception, UnknownName)


@pytest.mark.usefixtures("wide_pipe")
def test_suites_are_listed_with_where_they_are_from(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(new_suite(["loss"]))
    (tmp_path / "broken.yaml").write_text("tasks: [")
    shown = run("list", "--suites", str(tmp_path)).stdout
    assert "What this suite measures, in a line." in shown
    assert "not valid YAML" in shown
    assert "text-quick" in shown


SUITE = "description: mine\ntasks:\n  - {kind: loss, name: pairs, data: /data.jsonl}\n"


def test_a_suite_is_kept_in_the_service_shown_and_deleted(command: Command, service: Any, tmp_path: Path) -> None:
    (tmp_path / "captions.yaml").write_text(SUITE)
    assert command("suites", "put", "captions.yaml").out.startswith("suite captions is uploaded: 1 task, digest ")
    assert command("suites", "put", "captions.yaml", "--name", "other").code == 0
    shown = command("suites", "show", "captions").out
    assert shown.startswith("suite captions (put), digest ")
    assert "task pairs, kind loss:" in shown
    assert '  data: "/data.jsonl"' in shown
    listed = command("suites", "list", "--service", "--format", "json")
    assert {"captions", "other", "loss"} <= {suite["suite"] for suite in json.loads(listed.out)["suites"]}
    assert "the command would delete suite other of the service" in command("suites", "delete", "other").err
    assert command("suites", "delete", "other", "--yes").out == "suite other is deleted\n"
    assert "no suite is named 'other'" in command("suites", "show", "other").err


def test_a_shipped_suite_is_not_hidden_by_a_slip(command: Command, service: Any, tmp_path: Path) -> None:
    (tmp_path / "loss.yaml").write_text(SUITE)
    refused = command("suites", "put", "loss.yaml")
    assert (refused.code, "--replace-shipped" in refused.err) == (2, True)
    assert command("suites", "put", "loss.yaml", "--replace-shipped").code == 0
    deleted = command("suites", "delete", "loss", "--yes").out
    assert deleted == "suite loss is deleted; the name now stands for the suite of the shipped\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"x", "a.txt is not the file of a suite; give a file that ends in .yaml or .yml or .json"),
        ("a.yaml", None, "a.yaml is not the file of a suite"),
        ("a.yaml", b"x" * 1_000_001, "a.yaml has 1,000,001 bytes, more than the 1,000,000 of a suite"),
        ("a.yaml", b"\xff\xfe", "a.yaml cannot be read as text"),
        ("a.yaml", b"tasks: [", "not valid YAML"),
    ],
)
def test_what_is_no_suite_is_not_sent(
    command: Command, service: Any, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused = command("suites", "put", name)
    assert (refused.code, words in refused.err, "Traceback" in refused.err) == (2, True, False), refused.err
