"""`evalsvc evaluations`, `cancel` and `retry`."""

from pathlib import Path
from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.messages import ShardError


@pytest.fixture
def failed(evalsvc: Shell, service: Any, weights: Path) -> None:
    """Evaluation 1 failed, evaluation 2 waits."""
    service.coordinator.working = True
    service.coordinator.error = ShardError("checkpoint_changed", "the file has another size; post it with replace=true")
    assert evalsvc(f"submit run-a 25 {weights} --suite loss").code == 0
    service.coordinator.working = False
    assert evalsvc(f"submit run-a 50 {weights} --suite loss").code == 0


@pytest.mark.usefixtures("failed")
def test_evaluations_are_listed(evalsvc: Shell) -> None:
    assert [row[:4] for row in evalsvc("evaluations").cells if row[:1] in (["1"], ["2"])] == [
        ["2", "run-a@50", "loss", "queued"],
        ["1", "run-a@25", "loss", "failed"],
    ]
    assert "checkpoint_changed" in evalsvc("evaluations run-a --state failed").out
    found = evalsvc("evaluations --from 50 --format json").json
    assert [evaluation["id"] for evaluation in found["evaluations"]] == [2]
    assert "no evaluation matches" in evalsvc("evaluations --state cancelled").out


@pytest.mark.usefixtures("failed")
def test_a_failure_is_shown_whole_with_its_cure(evalsvc: Shell) -> None:
    shown = evalsvc("evaluations 1").out
    assert "evaluation 1 of run-a@25 by suite loss: failed" in shown
    assert "failed: the file has another size; post it with --replace [checkpoint_changed]" in shown
    assert "  checkpoint_changed: " in shown, "the meaning of the code"
    assert "after the cause is removed: evalsvc retry 1" in shown
    assert evalsvc("evaluations 1 --format json").json["state"] == "failed"


@pytest.mark.usefixtures("failed")
def test_cancelling_retrying_and_waiting(evalsvc: Shell, service: Any) -> None:
    waited = evalsvc("evaluations 1 --wait")
    assert (waited.code, "post it with --replace [checkpoint_changed]" in waited.err) == (1, True)
    assert evalsvc("cancel 2").out == "evaluation 2: cancelled\n"
    assert evalsvc("retry 1 2").out == "evaluation 1: queued\nevaluation 2: queued\n"
    service.coordinator.error = None
    service.coordinator.work()
    assert "loss/text" in evalsvc("evaluations 1 2 --wait").out


def test_the_suite_of_an_evaluation_outlives_the_suite(evalsvc: Shell, service: Any) -> None:
    enter(service.store, submission(5), suite())
    shown = evalsvc("evaluations 1 --tasks").out
    assert shown.startswith("suite quick of evaluation 1, deleted since; digest ")
    assert '  data: "/data.jsonl"' in shown


def test_again_says_what_it_costs_and_asks(evalsvc: Shell, service: Any, weights: Path) -> None:
    for step in (10, 20, 30, 40):
        evalsvc(f"submit run-a {step} {weights}")
    evalsvc(f"submit run-a 10 {weights} --suite loss")
    evaluate_whole(service.store, metric(2.0))
    evalsvc(f"submit run-a 20 {weights} --suite loss")
    asked = evalsvc("retry run-a@10..30 --suite loss")
    first, second = asked.out.splitlines()
    assert first == (
        "3 checkpoints in the selection: 1 evaluated by the present version of suite loss, 0 only by an earlier "
        "version; 1 queued or running, which are left out"
    )
    assert second.startswith("2 evaluations in about ")
    question = "the command would queue 2 evaluations, and standard input is no terminal"
    assert (asked.code, question in asked.err) == (2, True)
    for line, last in (
        ("retry run-a@10..30 --suite loss --missing --yes", "evaluation 3 of run-a@30: queued"),
        ("retry run-a@10..40/20 --suite loss --yes", "evaluation 4 of run-a@10: queued"),
        ("retry run-a@20..30 --suite loss", "no checkpoint is left to evaluate"),
    ):
        done = evalsvc(line)
        assert (done.code, done.out.splitlines()[-1]) == (0, last)
