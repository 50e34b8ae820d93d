"""`evalsvc artifacts keep` and `prune`."""

from typing import Any

from console import Command
from queue_steps import enter, evaluate_whole, metric, submission, suite


def test_a_rule_is_given_shown_and_taken_away(command: Command, service: Any) -> None:
    rule = ("--last", "5", "--every", "1000", "--days", "30", "--best", "coco/fid")
    shown = "run run-a keeps last 5, every 1000, days 30.0, best coco/fid (the run's rule)\n"
    assert command("artifacts", "keep", "run-a", *rule).out == shown
    assert command("artifacts", "keep", "run-a").out == shown
    assert command("artifacts", "prune").out == "0 artifacts are pruned, 0 bytes freed\n"
    assert command("artifacts", "prune", "--dry-run").out == "0 artifacts would be pruned, 0 bytes\n"
    assert command("artifacts", "keep", "run-a", "--default").out == "run run-a keeps all artifacts\n"


def test_the_services_rule_and_one_of_ones_own_exclude_each_other(command: Command) -> None:
    assert "leave the others out" in command("artifacts", "keep", "run-a", "--default", "--last", "3").err


def test_a_metric_that_does_not_exist_is_refused(command: Command, service: Any) -> None:
    """The rule was taken, and pruned nothing for ever, or the best with the rest."""
    enter(service.store, submission(1), suite("loss"))
    evaluate_whole(service.store, metric(2.0))
    refused = command("artifacts", "keep", "run-b", "--best", "loss/txet")
    assert (refused.code, "no metric is named 'loss/txet'; did you mean 'loss/text'?" in refused.err) == (2, True)
    assert command("artifacts", "keep", "run-b", "--best", "loss/text").code == 0
    assert "keeps best loss/text" in command("artifacts", "keep", "run-b").out
