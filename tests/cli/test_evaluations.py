"""`evalsvc evaluations`."""

import json
from pathlib import Path
from typing import Any

import pytest
from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.messages import ShardError


@pytest.fixture
def failed(command: Command, service: Any, weights: Path) -> None:
    """Evaluation 1 failed, evaluation 2 waits."""
    service.coordinator.working = True
    service.coordinator.error = ShardError("checkpoint_changed", "the file has another size; post it with replace=true")
    assert command("submit", "run-a", "25", str(weights), "--suite", "loss").code == 0
    service.coordinator.working = False
    assert command("submit", "run-a", "50", str(weights), "--suite", "loss").code == 0


@pytest.mark.usefixtures("failed")
def test_evaluations_are_listed(command: Command) -> None:
    rows = [line.split() for line in command("evaluations").out.splitlines()]
    assert [row[:4] for row in rows if row[:1] in (["1"], ["2"])] == [
        ["2", "run-a@50", "loss", "queued"],
        ["1", "run-a@25", "loss", "failed"],
    ]
    assert "checkpoint_changed" in command("evaluations", "run-a", "--state", "failed").out
    found = json.loads(command("evaluations", "--from", "50", "--format", "json").out)
    assert [evaluation["id"] for evaluation in found["evaluations"]] == [2]
    assert "no evaluation matches" in command("evaluations", "--state", "cancelled").out
    refused = command("evaluations", "--state", "broken")
    assert (refused.code, "'partly_failed'" in refused.err) == (2, True)


@pytest.mark.usefixtures("failed")
def test_a_failure_is_shown_whole_with_its_cure(command: Command) -> None:
    shown = command("evaluations", "1").out
    assert "evaluation 1 of run-a@25 by suite loss: failed" in shown
    assert "failed: the file has another size; post it with --replace [checkpoint_changed]" in shown
    assert "  checkpoint_changed: " in shown, "the meaning of the code"
    assert "after the cause is removed: evalsvc retry 1" in shown
    assert json.loads(command("evaluations", "1", "--format", "json").out)["state"] == "failed"
    assert "there is no evaluation 9" in command("evaluations", "9").err


@pytest.mark.usefixtures("failed")
def test_cancelling_and_retrying(command: Command) -> None:
    assert command("cancel", "2").out == "evaluation 2: cancelled\n"
    assert command("retry", "1", "2").out == "evaluation 1: queued\nevaluation 2: queued\n"
    assert command("cancel", "0").code == 2
    assert "'run-a' is not the id of an evaluation; give an id" in command("retry", "run-a").err
    assert "--missing is given without --suite; leave --missing out" in command("retry", "1", "--missing").err


def test_the_suite_of_an_evaluation_outlives_the_suite(command: Command, service: Any) -> None:
    enter(service.store, submission(5), suite())
    shown = command("evaluations", "1", "--tasks").out
    assert shown.startswith("suite quick of evaluation 1, deleted since; digest ")
    assert '  data: "/data.jsonl"' in shown


@pytest.mark.usefixtures("failed")
def test_waiting_ends_with_the_evaluations(command: Command, service: Any) -> None:
    service.coordinator.error = None
    service.coordinator.work()
    assert "loss/text" in command("evaluations", "2", "--wait").out
    waited = command("evaluations", "1", "2", "--wait")
    assert (waited.code, "post it with --replace [checkpoint_changed]" in waited.err) == (1, True)
    assert "1 2 are several names; give one, or ids of evaluations with --wait" in command("evaluations", "1", "2").err
    assert "--wait is given without the id of an evaluation" in command("evaluations", "run-a", "--wait").err
    assert "--state is given with 1, which is one evaluation" in command("evaluations", "1", "--state", "failed").err


def test_again_says_what_it_costs_and_asks(command: Command, service: Any, weights: Path) -> None:
    for step in (10, 20, 30, 40):
        command("submit", "run-a", str(step), str(weights))
    command("submit", "run-a", "10", str(weights), "--suite", "loss")
    evaluate_whole(service.store, metric(2.0))
    command("submit", "run-a", "20", str(weights), "--suite", "loss")
    asked = command("retry", "run-a@10..30", "--suite", "loss")
    assert asked.code == 2
    first, second = asked.out.splitlines()
    assert first == (
        "3 checkpoints in the selection: 1 evaluated by the present version of suite loss, 0 only by an earlier "
        "version; 1 queued or running, which are left out"
    )
    assert second.startswith("2 evaluations in about ")
    assert "the command would queue 2 evaluations, and standard input is no terminal" in asked.err
    posted = command("retry", "run-a@10..30", "--suite", "loss", "--missing", "--yes").out
    assert posted.splitlines()[-1] == "evaluation 3 of run-a@30: queued"
    again = command("retry", "run-a@10..40/20", "--suite", "loss", "--yes").out
    assert again.splitlines()[-1] == "evaluation 4 of run-a@10: queued"
    nothing = command("retry", "run-a@20..30", "--suite", "loss")
    assert (nothing.code, nothing.out.splitlines()[-1]) == (0, "no checkpoint is left to evaluate")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("run-a@5..1", (), "'run-a@5..1' has 5..1; give a last step that is not below the first"),
        ("run-a@1..5/0", (), "'run-a@1..5/0' has /0; give a last step"),
        *((name, (), "names no checkpoints; give RUN@A..B") for name in ("../run-a", "@5", "run-a@5..", "run-a@5/2")),
        ("run-a@6..9", (), "no checkpoint matches run-a@6..9; evalsvc checkpoints run-a shows the steps"),
        ("run-b", (), "no run is named 'run-b'; did you mean 'run-a'?"),
        ("run-a", ("--suite", "los"), "no suite is named 'los'; did you mean 'loss'?"),
        ("run-a@9999999999999999999", (), "error: "),
    ],
)
def test_what_names_no_checkpoints_posts_nothing(
    command: Command, service: Any, name: str, options: tuple[str, ...], words: str
) -> None:
    enter(service.store, submission(5), suite())
    refused = command("retry", name, *(options or ("--suite", "loss")), "--yes")
    assert (refused.code, words in refused.err, "Traceback" in refused.err) == (2, True, False), refused.err
    assert len(json.loads(command("evaluations", "--format", "json").out)["evaluations"]) == 1
