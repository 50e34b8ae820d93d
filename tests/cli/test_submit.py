"""`evalsvc submit` and `checkpoints`: what they print, where, and their exit codes."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.messages import ShardError


class TestSubmit:
    def test_posts_and_says_what_was_entered(self, command: Command, service: Any, weights: Path) -> None:
        result = command(
            "submit", "run-a", "25", "epoch_1.pt", "--suite", "loss", "--tag", "lr=3e-4", "--spool", "link"
        )
        assert (result.code, result.err) == (0, "")
        assert result.out == "checkpoint 1: run-a step 25 raw\nevaluation 1: loss queued\n"

    def test_model_and_layout_from_files_of_this_machine(
        self, command: Command, service: Any, weights: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "layout.yaml").write_text("text: {size: 50432}")
        arguments = ["--suite", "loss", "--model", "open_lm_160m", "--layout", "layout.yaml"]
        assert command("submit", "run-a", "25", str(weights), *arguments).code == 0
        assert command("submit", "run-a", "50", str(weights), "--layout", '{"text": {"size": 9}}').code == 0

    def test_wait_shows_progress_and_metrics(self, command: Command, service: Any, weights: Path) -> None:
        service.coordinator.working = True
        result = command("submit", "run-a", "25", str(weights), "--suite", "loss", "--wait")
        assert result.code == 0
        assert "loss/text" in result.out
        assert "± 0.1" in result.out
        assert "loss: pairs 8 of 8 sequences" in result.err

    def test_wait_fails_with_the_evaluation(self, command: Command, service: Any, weights: Path) -> None:
        service.coordinator.working, service.coordinator.error = True, ShardError("non_finite", "layer 3 gives NaN")
        result = command("submit", "run-a", "25", str(weights), "--suite", "loss", "--wait")
        assert result.code == 1
        assert "error: evaluation 1 (loss), task text, pairs: layer 3 gives NaN [non_finite]" in result.err

    def test_ctrl_c_leaves_the_evaluation_and_says_how_to_follow_it(
        self, command: Command, service: Any, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It ended without a word, as if the evaluation had ended with it."""

        def press(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Client, "wait", press)
        result = command("submit", "run-a", "25", str(weights), "--suite", "loss", "--wait")
        assert result.code == 130
        assert "the service goes on; follow it: evalsvc evaluations 1 --wait\n" in result.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-5"], "error: step -5 is not a step; give a whole number of at least 0 [invalid_request]"),
            (["25", "--tag", "lr"], "--tag lr has no `=`; write the tag as KEY=VALUE"),
            (["25", "--model", "open_lm_1bb"], "did you mean 'open_lm_1b'"),
            (["25", "--model", "{"], "--model is not JSON"),
            (["25", "--layout", "nowhere.yaml"], "nowhere.yaml does not exist or cannot be read"),
        ],
    )
    def test_bad_argument(
        self, command: Command, service: Any, weights: Path, arguments: list[str], words: str
    ) -> None:
        step, *options = arguments
        result = command("submit", "run-a", step, str(weights), *options)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
        assert "Traceback" not in result.err

    def test_conflict(self, command: Command, service: Any, weights: Path) -> None:
        weights.with_name("other.pt").write_bytes(b"other")
        command("submit", "run-a", "25", str(weights))
        result = command("submit", "run-a", "25", "other.pt")
        assert (result.code, "[conflict]" in result.err) == (2, True)
        assert command("submit", "run-a", "25", "other.pt", "--replace").code == 0


class TestVirtual:
    @pytest.fixture
    def parents(self, service: Any, command: Command, weights: Path) -> None:
        for step in (0, 20):
            command("submit", "run-a", str(step), str(weights))

    def test_submit_posts_an_expression_as_it_is(self, command: Command, parents: None) -> None:
        result = command("submit", "mix", "30", "lerp(run-a@0, run-a@20, 0.3)", "--suite", "loss")
        assert result.out == "checkpoint 3: mix step 30 raw, lerp(run-a@0, run-a@20, 0.3)\nevaluation 1: loss queued\n"

    def test_mixtures_are_one_curve_against_a_metric(self, command: Command, service: Any, parents: None) -> None:
        for step in (0, 50, 100):
            mixture = f"lerp(run-a@0, run-a@20, {step / 100:g})"
            assert command("submit", "mix", str(step), mixture, "--suite", "loss").code == 0
        evaluate_whole(service.store, metric(2.0), metric(1.25, "loss/image", stderr=None))
        arguments = ["history", "mix", "--metric", "loss/image", "--against", "loss/text"]
        rows = [line.split() for line in command(*arguments).out.splitlines() if "raw" in line]
        assert rows == [["mix", "raw", step, "2", "±", "0.1", "1.25"] for step in ("0", "50", "100")]
        rows = list(csv.reader(io.StringIO(command(*arguments, "--format", "csv").out)))
        columns = [
            f"{name}{end}"
            for name in ("loss/text", "loss/image")
            for end in ("", " stderr", " low", " high", " source")
        ]
        assert rows[0] == ["run", "variant", "step", *columns]
        assert rows[2] == ["mix", "raw", "50", "2.0", "0.1", "1.75", "2.25", "", "1.25", "", "", "", ""]
        found = json.loads(command("history", "mix", "--against", "loss/text", "--format", "json").out)
        assert [row["loss/image"]["value"] for row in found["rows"]] == [1.25] * 3
        assert "did you mean 'loss/text'" in command("history", "mix", "--against", "loss/txt").err


class TestList:
    @pytest.fixture(autouse=True)
    def posted(self, command: Command, service: Any) -> None:
        enter(service.store, submission(5), suite())
        enter(service.store, submission(10, variant="ema"))
        enter(service.store, submission(5, run="run-b"))

    def test_checkpoints_are_listed_with_their_evaluations(self, command: Command) -> None:
        lines = command("checkpoints").out.splitlines()
        assert [line.split()[0] for line in lines if "@" in line] == ["run-a@5", "run-a@10:ema", "run-b@5"]
        assert any("quick queued" in line for line in lines)
        assert "run-a@5" not in command("checkpoints", "run-a", "--from", "6").out
        found = json.loads(command("checkpoints", "--state", "queued", "--format", "json").out)
        assert [checkpoint["id"] for checkpoint in found["checkpoints"]] == [1]
        assert "the first 1 are shown" in command("checkpoints", "--limit", "1").err
        assert "no run is named 'run-x'" in command("checkpoints", "run-x").err

    def test_one_is_shown_by_its_name_or_id(self, command: Command) -> None:
        for name in ("run-a@10:ema", "2"):
            assert "variant: ema" in command("checkpoints", name).out
        assert "no checkpoint is named 'run-a@6'; did you mean" in command("checkpoints", "run-a@6").err
        assert (
            "--state is given with 2, which is one checkpoint" in command("checkpoints", "2", "--state", "failed").err
        )
        assert "'run-a' is not a checkpoint; write RUN@STEP" in command("checkpoints", "run-a", "--result").err
        assert "--suite is given without --result" in command("checkpoints", "run-a", "--suite", "quick").err

    def test_a_result_is_a_file_that_compare_reads(self, command: Command, service: Any, tmp_path: Path) -> None:
        evaluate_whole(service.store, metric(2.0))
        shown = command("checkpoints", "run-a@5", "--result").out
        assert "run 'run-a' step 5: quick succeeded" in shown
        assert "loss/text" in shown
        assert command("checkpoints", "run-a@5", "--result", "--format", "json", "--output", "a.json").code == 0
        compared = command("compare", "a.json", "a.json")
        assert (compared.code, "loss/text" in compared.out) == (0, True), compared.err

    def test_one_is_deleted_after_its_name(self, command: Command) -> None:
        asked = command("delete", "run-b@5")
        assert "checkpoint run-b@5 with 0 evaluations would be deleted, and standard input is no terminal" in asked.err
        deleted = command("delete", "run-b@5", "--yes")
        assert deleted.out.startswith("checkpoint run-b@5 is deleted: 0 evaluations, 0 values"), deleted.err
        refused = command("delete", "run-a@5", "--yes")
        assert (refused.code, "--cancel" in refused.err) == (2, True)
        assert command("delete", "run-a@5", "--yes", "--cancel").code == 0
