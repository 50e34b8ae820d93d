"""`evalsvc artifacts`."""

import json
from pathlib import Path
from typing import Any

import pytest
from console import Command
from forgetting_reports import content
from queue_steps import enter, evaluate_whole, kept_artifact, submission, suite

from evalsvc.cli.evaluate import _write_artifact
from evalsvc.compare.text_pages import rendered
from evalsvc.files.artifacts import KeptArtifact, artifact_path, keep_content


def test_a_rule_is_given_shown_and_taken_away(command: Command, service: Any) -> None:
    rule = ("--last", "5", "--every", "1000", "--days", "30", "--best", "coco/fid")
    shown = "run run-a keeps last 5, every 1000, days 30.0, best coco/fid (the run's rule)\n"
    assert command("artifacts", "keep", "run-a", *rule).out == shown
    assert command("artifacts", "keep", "run-a").out == shown
    assert command("artifacts", "keep", "--prune").out == "pruned 0 artifacts, freed 0 bytes\n"
    assert command("artifacts", "keep", "--prune", "--dry-run").out == "0 artifacts would be pruned, 0 bytes\n"
    assert command("artifacts", "keep", "run-a", "--default").out == "run run-a keeps all artifacts\n"


def test_the_services_rule_and_one_of_ones_own_exclude_each_other(command: Command) -> None:
    assert "give --default alone" in command("artifacts", "keep", "run-a", "--default", "--last", "3").err


def test_a_report_is_fetched_in_its_forms(command: Command, service: Any, tmp_path: Path) -> None:
    report = content()
    sha256 = keep_content(service.settings.artifacts_path, report)
    kept = KeptArtifact("forgetting", "forgetting.json", "application/json", {}, sha256, len(report))
    enter(service.store, submission(5), suite())
    evaluate_whole(service.store, artifacts=[kept])
    text = command("artifacts", "get", "1", "--as", "text")
    assert text.out.startswith("artifact-1.txt: text/plain; charset=utf-8, "), text.err
    assert (tmp_path / "artifact-1.txt").read_text() == rendered("forgetting", report, "text")
    assert command("artifacts", "get", "1", "--as", "csv").code == 0
    assert (tmp_path / "artifact-1.csv").read_text().startswith("what,metric,scope")
    assert command("artifacts", "get", "1", "--output", "-").out == report.decode()


def test_a_result_on_disk_has_the_forms_of_its_reports(tmp_path: Path) -> None:
    """Without a service nobody renders them later."""
    artifact = {"kind": "forgetting", "name": "forgetting.json", "content": content()}
    assert _write_artifact(artifact, tmp_path / "kept")["path"] == str(tmp_path / "kept" / "forgetting.json")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"forgetting.json", "forgetting.txt", "forgetting.csv"}


class TestContent:
    @pytest.fixture(autouse=True)
    def grids(self, command: Command, service: Any) -> None:
        """Artifact 1 is the grid of run-a@5, 2 and 3 are of run-a@10: one of each of its two tasks."""
        folder = service.settings.artifacts_path
        enter(service.store, submission(5), suite())
        evaluate_whole(service.store, artifacts=[kept_artifact(keep_content(folder, b"one"))])
        enter(service.store, submission(10), suite(tasks=2))
        evaluate_whole(service.store, artifacts=[kept_artifact(keep_content(folder, b"two"), "../../.bashrc")])

    def test_artifacts_are_listed(self, command: Command) -> None:
        lines = command("artifacts", "list", "run-a").out.splitlines()
        assert [line.split()[:4] for line in lines if "run-a@" in line] == [
            ["1", "run-a@5", "loss-0", "grid"],
            ["2", "run-a@10", "loss-0", "grid"],
            ["3", "run-a@10", "loss-1", "grid"],
        ]
        found = json.loads(command("artifacts", "list", "run-a", "--step", "5", "--format", "json").out)
        assert [artifact["id"] for artifact in found["artifacts"]] == [1]

    def test_a_grid_is_fetched_by_its_checkpoint(self, command: Command, tmp_path: Path) -> None:
        assert command("artifacts", "get", "run-a@5").out == "run-a-5.png: image/png, 3 bytes\n"
        assert (tmp_path / "run-a-5.png").read_bytes() == b"one"
        refused = command("artifacts", "get", "run-a@5")
        assert (refused.code, "the file run-a-5.png exists; name another file by --output" in refused.err) == (2, True)
        assert "has grids of the tasks loss-0, loss-1; name a task" in command("artifacts", "get", "run-a@10").err
        assert command("artifacts", "get", "run-a@10", "--task", "loss-1", "--output", "two.png").code == 0
        assert (tmp_path / "two.png").read_bytes() == b"two"
        assert "did you mean 'loss-1'" in command("artifacts", "get", "run-a@10", "--task", "loss-2").err

    def test_the_name_that_others_gave_names_no_file(self, command: Command, tmp_path: Path) -> None:
        """A task may call what it leaves `../../.bashrc`."""
        assert command("artifacts", "get", "2").out == "artifact-2.png: image/png, 3 bytes\n"
        assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["artifact-2.png"]

    def test_content_goes_to_a_pipe(self, command: Command) -> None:
        assert command("artifacts", "get", "1", "--output", "-").out == "one"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["get", "9"], "there is no artifact 9; evalsvc artifacts list RUN lists"),
            (["get", "1", "--output", "no/a.png"], "--output no/a.png: the folder no does not exist"),
            (["get", "1", "--output", "."], ". cannot be written"),
            (["get", "0"], "input should be greater than or equal to 1, found 0"),
            (["get", "1", "--task", "loss-0"], "--task is given with 1, which is one artifact; leave --task out"),
            (["keep"], "no run is given; name the run of the rule, or give --prune to prune all runs"),
            (["keep", "run-a", "--prune", "--last", "2"], "set the rule first, then give --prune alone"),
            (["keep", "run-a", "--dry-run"], "--dry-run is given without --prune"),
            (["get", "run-a@6"], "no checkpoint is named 'run-a@6'"),
        ],
    )
    def test_what_cannot_be_fetched(self, command: Command, arguments: list[str], words: str) -> None:
        refused = command("artifacts", *arguments)
        assert (refused.code, words in refused.err, "Traceback" in refused.err) == (2, True, False), refused.err

    def test_a_lost_content_is_not_half_a_file(self, command: Command, service: Any, tmp_path: Path) -> None:
        (path,) = {artifact_path(service.settings.artifacts_path, keep_content(tmp_path, b"one"))}
        path.chmod(0o600)
        path.write_bytes(b"ONE")
        refused = command("artifacts", "get", "run-a@5")
        assert (refused.code, (tmp_path / "run-a-5.png").exists()) == (2, False)
