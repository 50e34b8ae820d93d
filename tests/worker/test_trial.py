"""The gate that samples until it is decided: when it stops, what it then says, and how seldom it is wrong."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gate_documents import result, value
from typer.testing import CliRunner

from evalsvc.checkpoints.reference import CheckpointRef, identify
from evalsvc.cli import app
from evalsvc.compare.gate_report import Comparison, Outcome, Report
from evalsvc.compare.gate_rules import Rule, Rules
from evalsvc.compare.reports import LOOK_COLUMNS, effort, look_row, to_json, to_markdown
from evalsvc.compare.result import Result
from evalsvc.config import Settings
from evalsvc.metrics.intervals import critical_value
from evalsvc.metrics.sequential import boundaries, level_of
from evalsvc.metrics.shares import standard_error
from evalsvc.spec.suite import Suite, parse_suite
from evalsvc.worker.local import TaskLook, run_suite
from evalsvc.worker.trial import Both, Trial, sample_until_decided

RULE = Rule(metric="t/x", standard_errors=1.96, relative=0.0)


def sides(differences: Sequence[float], n: int, name: str = "t/x", **fields: Any) -> tuple[Result, Result]:
    """Both sides' first n items, a difference apart; candidate first."""
    shared = [Random(index).gauss(0, 1) for index in range(n)]
    made = []
    for marks in ([mark + gap for mark, gap in zip(shared, differences, strict=False)], shared):
        items = [{"index": index, name: mark} for index, mark in enumerate(marks)]
        metric = value(name, math.fsum(marks) / n, standard_error(marks), n=n, items=(name,), **fields)
        made.append(result(metric, items={"t": items}))
    return made[0], made[1]


def trial_of(*rules: Rule, **fields: Any) -> Trial:
    return Trial("t", Rules(rules), **fields)


def judge(trial: Trial, both: Both) -> Sequence[Comparison]:
    return trial.comparisons if trial.judge(both) else []


def look(trial: Trial, differences: Sequence[float], n: int, total: int = 1024, **fields: Any) -> Comparison | None:
    """The comparison of one metric, if this look settles it."""
    candidate, baseline = sides(differences, n, **fields)
    return next(iter(judge(trial, Both(candidate, baseline, n, total, "images", last=n == total))), None)


def noisy(mean: float) -> list[float]:
    return [mean + (1 if index % 2 else -1) for index in range(1024)]


def join(*results: Result) -> Result:
    documents = [one.document for one in results]
    items = [document.items.get("t") or [{}] * 1024 for document in documents]
    rows = [{**one, **other} for one, other in zip(*items, strict=False)]
    metrics = [metric for document in documents for metric in document.metrics]
    return Result("side", documents[0].model_copy(update={"metrics": metrics, "items": {"t": rows}}))


def several(n: int, total: int = 1024, **means: float) -> Both:
    """A look at several metrics."""
    made = [sides(noisy(mean), n, f"t/{name}") for name, mean in means.items()]
    return Both(*map(join, *made), n, total, "images", last=n == total)


class TestLook:
    def test_what_a_single_test_would_call_worse_goes_on(self) -> None:
        """At an eighth of the data 1.96 standard errors are no news: of eight such looks one in five would err."""
        differences = noisy(0.25)
        trial = trial_of(RULE)
        assert look(trial, differences, 128) is None
        (seen,) = trial.looks
        assert 1.96 < seen.difference / seen.stderr < 5 < seen.standard_errors == pytest.approx(6.23, abs=0.01)
        assert seen.verdict == "undecided"
        assert look(trial, differences, 256) is None
        found = look(trial, differences, 512)
        assert (found.verdict, found.difference and found.difference.n) == ("worse", 512)

    def test_it_stops_beyond_a_boundary_or_where_no_regression_is_left(self) -> None:
        for direction, verdict in (("lower", "worse"), ("higher", "better")):
            assert look(trial_of(RULE), noisy(2.0), 128, direction=direction).verdict == verdict
        tolerant = RULE.model_copy(update={"absolute": 1.0})
        for mean in (0.0, -0.5):
            found = look(trial_of(tolerant), noisy(mean), 128)
            assert (found.verdict, "within the tolerance 1" in found.reason) == ("within_tolerance", True)
        assert look(trial_of(tolerant), noisy(0.8), 128) is None
        assert look(trial_of(RULE), [math.nan, *noisy(0.0)], 128).verdict == "worse", "it diverged"

    def test_equal_so_far_is_not_equal(self) -> None:
        """256 prompts that are read alike on both sides have an error of zero and prove nothing of the next ones."""
        assert look(trial_of(RULE), [0.0] * 256, 256) is None
        found = look(trial_of(RULE), [0.0] * 1024, 1024)
        assert (found.verdict, found.reason) == ("within_tolerance", "equal")
        found = look(trial_of(RULE), noisy(0.0), 1024)
        noise_of_one_look = critical_value(RULE.level, 1023) * found.difference.stderr
        assert (found.verdict, found.difference.noise) == ("within_noise", pytest.approx(noise_of_one_look)), "the last"

    def test_a_decision_stands_while_another_metric_goes_on(self) -> None:
        trial = trial_of(Rule(metric="t/*", standard_errors=1.96, relative=0.0))
        assert not trial.judge(several(256, x=-2.0, y=0.0))
        found = judge(trial, several(1024, x=0.0, y=0.0))
        numbers = [(item.metric, item.verdict, item.difference.n) for item in found]
        assert numbers == [("t/x", "better", 256), ("t/y", "within_noise", 1024)]

    def test_a_named_perplexity_is_looked_at_by_the_rule_that_names_it(self) -> None:
        """The pattern before it does not judge the perplexity, so its level is not that of the look."""
        trial = trial_of(RULE.model_copy(update={"metric": "t/*"}), Rule(metric="t/text_perplexity"))
        assert not trial.judge(several(256, text=0.0, text_perplexity=0.0))
        assert [round(seen.level, 5) for seen in trial.looks] == [0.025, 0.00135]

    def test_a_metric_that_a_rule_names_is_waited_for(self) -> None:
        """FID on 2,048 features begins with 2,049 images; a look before must not pass it unseen."""
        assert look(trial_of(Rule(metric="t/fid"), RULE), noisy(-2.0), 256) is None
        assert look(trial_of(Rule(metric="other/fid"), RULE), noisy(-2.0), 256) is not None

    @pytest.mark.parametrize(
        ("tolerance", "early", "late"), [({}, "not_judged", "not_judged"), ({"absolute": 0.1}, "ignored", "worse")]
    )
    def test_without_a_standard_error_it_is_not_judged_before_the_end(
        self, tolerance: dict[str, float], early: str, late: str
    ) -> None:
        rule = Rule(metric="t/*", standard_errors=1.96, **tolerance)
        more = [result(value("t/recall", number, None, direction="higher")) for number in (0.1, 0.9)]
        for n, verdict in ((256, early), (1024, late)):
            both = Both(*map(join, sides(noisy(2.0), n), more), n, 1024, "images", last=n == 1024)
            assert [one.verdict for one in judge(trial_of(rule), both)] == ["worse", verdict]


class TestLevel:
    def test_a_loss_within_the_tolerance_fails_no_more_often_than_at_one_look(self) -> None:
        """Of a tolerance of 8 final errors and a loss of 0.8 of it, one look calls 0.05 worse. Where the estimate alone
        had to be beyond the tolerance at any look, 0.4 were."""
        rule = RULE.model_copy(update={"absolute": 0.8, "standard_errors": 2.0})
        verdicts = []
        for seed in range(40):
            random, trial = Random(seed), trial_of(rule)
            gaps = [random.gauss(0.8 * 0.8, 1) for _ in range(100)]
            decisions = (look(trial, gaps, n, 100) for n in (13, 25, 50, 100))
            verdicts.append(next(found.verdict for found in decisions if found is not None))
        assert verdicts.count("worse") <= 6, "three errors above 0.05 of 40"

    def test_few_items_at_a_look_ask_for_the_quantile_of_so_many(self) -> None:
        trial = trial_of(RULE, spending="pocock")
        assert look(trial, noisy(0.0), 16, 32) is None
        (seen,) = trial.looks
        boundary = boundaries(level_of(1.96), (0.5,), "pocock")[0]
        assert (seen.standard_errors, seen.level) == (pytest.approx(boundary), pytest.approx(0.025, abs=1e-4))
        reach = (seen.high - seen.difference) / seen.stderr
        assert reach == pytest.approx(critical_value(level_of(boundary) / 2, 15))
        assert reach > 1.1 * boundary

    def test_a_family_shares_the_level_among_tasks_and_metrics(self) -> None:
        """Two tasks; of this one's metrics two are there and one is waited for."""
        rules = Rule(metric="t/fid"), Rule(metric="t/*", standard_errors=2.0)
        trial = Trial("t", Rules(rules, "holm"), tasks=2)
        assert not trial.judge(several(256, 512, x=0.0, y=0.0))
        assert [seen.level for seen in trial.looks] == pytest.approx([rules[1].level / 6] * 2)
        assert trial.looks[0].standard_errors == boundaries(2 * rules[1].level / 6, (0.5,))[0]

    def test_what_is_alike_so_far_is_no_harmless_change(self) -> None:
        """Answers that are all alike have an error, and an interval that may reach beyond the tolerance."""
        marks = [float(index % 2) for index in range(256)]
        items = {"t": [{"index": index, "t/x": mark} for index, mark in enumerate(marks)]}
        side = result(value("t/x", 0.5, 0.03, n=256, items=("t/x",)), items=items)
        for tolerance, reasons in ((0.001, []), (0.5, ["equal in every item; worse "])):
            trial = trial_of(RULE.model_copy(update={"absolute": tolerance}))
            found = judge(trial, Both(side, side, 256, 512, "images", last=False))
            assert [one.reason[:27] for one in found] == reasons


Weights = Callable[[str], CheckpointRef]


@pytest.fixture
def weights(open_lm_case: Path, tmp_path: Path) -> Weights:
    def make(name: str) -> CheckpointRef:
        path = tmp_path / f"{name}.pt"
        path.write_bytes((open_lm_case / "checkpoints" / "epoch_1.pt").read_bytes())
        return CheckpointRef(str(path), identify(path), label=name)

    return make


def steps(tmp_path: Path, **parameters: Any) -> dict[str, Any]:
    task = {"kind": "steps", "log": str(tmp_path / "log"), "seconds": 0, "shards": 8, "steps": 256, "looks": True}
    return {"tasks": [{**task, **parameters}]}


def count(tmp_path: Path) -> int:
    return len((tmp_path / "log").read_text().splitlines())


MARK = Rules((Rule(metric="*/mark", relative=0.0, absolute=0.03),))


def sample(candidate: CheckpointRef, baseline: CheckpointRef, suite: Suite, rules: Rules) -> Report:
    refs = candidate, baseline
    return sample_until_decided(refs, suite, rules, Settings.load(), lambda *now: None, lambda look: None)


class TestBothSides:
    def gate(self, candidate: CheckpointRef, baseline: CheckpointRef, tmp_path: Path, **parameters: Any) -> Report:
        return sample(candidate, baseline, parse_suite(steps(tmp_path, **parameters), "marks"), MARK)

    def test_a_worse_checkpoint_is_sampled_no_further_than_it_takes(self, weights: Weights, tmp_path: Path) -> None:
        report = self.gate(weights("worse"), weights("before"), tmp_path, drift=0.2)
        assert (report.outcome, count(tmp_path)) == (Outcome.REGRESSION, 2 * 256)
        assert effort(report) == ["steps: 256 of 2,048 steps of each side, 1 look, 88% saved"]
        (row,) = map(look_row, report.looks)
        assert (row[:2], row[-1]) == (["steps/mark", "256 of 2,048 steps"], "worse")
        assert row[LOOK_COLUMNS.index("basis")] == "paired"
        document = json.loads(to_json(report))
        [seen] = document["looks"]
        assert (seen["basis"], document["samples"][0]["saved"]) == ("paired", 0.875)
        boundary = boundaries(level_of(3.0), (0.125,), "obrien-fleming")[-1]
        assert (seen["standard_errors"], seen["level"]) == pytest.approx((boundary, 0.0013499), rel=1e-4)
        assert (document["alarms"]["family"], document["alarms"]["lowest"]) == ("none", seen["level"])
        assert "88% saved" in to_markdown(report)

    def test_equal_ones_stop_as_equivalent(self, weights: Weights, tmp_path: Path) -> None:
        report = self.gate(weights("after"), weights("before"), tmp_path, until={"stderr": 1, "metric": "mark"})
        assert (report.outcome, report.looks[-1].units in (512, 1024)) == (Outcome.PASSED, True)
        assert "within the tolerance 0.03" in report.comparisons[0].reason

    def test_a_family_of_looks_is_held_by_bonferroni(self, weights: Weights, tmp_path: Path) -> None:
        """Two tasks of one metric each; the level of a rule is that of the gate."""
        (task,) = steps(tmp_path)["tasks"]
        suite = parse_suite({"tasks": [task, {**task, "name": "more"}]}, "marks")
        report = sample(weights("after"), weights("before"), suite, Rules(MARK.rules, "holm"))
        assert (report.alarms.family, report.alarms.metrics) == ("bonferroni", 2)
        assert report.alarms.at_most == pytest.approx(MARK.rules[0].level)
        assert {look.level for look in report.looks} == {MARK.rules[0].level / 2}

    def test_a_side_that_fails_is_named(self, weights: Weights, tmp_path: Path) -> None:
        broken = weights("broken")
        Path(broken.path).write_text("no weights")
        report = self.gate(broken, weights("before"), tmp_path)
        assert report.outcome == Outcome.NOT_JUDGED
        assert "the candidate's task steps failed: broken: " in report.comparisons[0].reason
        other_way = self.gate(weights("after"), broken, tmp_path)
        assert other_way.outcome == Outcome.NO_BASELINE
        assert other_way.problems[0].startswith("broken has no values; steps: broken: ")

    def test_on_the_command_line(self, weights: Weights, tmp_path: Path) -> None:
        worse, before = weights("worse"), weights("before")
        (tmp_path / "marks.yaml").write_text(json.dumps(steps(tmp_path, drift=1.0)))
        (tmp_path / "rules.yaml").write_text("rules: [{metric: steps/mark}]")
        words = ["gate", worse.path, "--baseline", before.path, "--rules", str(tmp_path / "rules.yaml")]
        done = CliRunner().invoke(app, [*words, "--suite", str(tmp_path / "marks.yaml"), "--until", "decided"])
        assert done.exit_code == 1, done.output
        assert "steps: 256 of 2,048 steps of each side, 1 look, 88% saved" in done.stdout
        assert "regression: 1 worse" in done.stdout
        refused = CliRunner().invoke(app, [*words, "--until", "decided"])
        assert "--until decided is given without --suite" in refused.exception.message
        refused = CliRunner().invoke(app, [*words, "--device", "cpu"])
        assert "without --until decided; leave the option out" in refused.exception.message


class TestRun:
    def test_what_is_known_so_far_is_told(self, weights: Weights, tmp_path: Path) -> None:
        told: list[TaskLook] = []
        suite = parse_suite(steps(tmp_path), "marks")
        result = run_suite(suite, weights("after"), lambda *now: None, interim=told.append)
        assert [(look.units, look.result.output.metrics[1]["n"]) for look in told] == [(n, n) for n in (256, 512, 1024)]
        assert [metric.n for metric in result.metrics] == [2048, 2048]

    def test_it_stops_when_the_error_is_small_enough(self, weights: Weights, tmp_path: Path) -> None:
        """The error of a mark is 1 / √n."""
        suite = parse_suite(steps(tmp_path, until={"stderr": 0.05, "metric": "mark"}), "marks")
        result = run_suite(suite, weights("after"), lambda *now: None)
        assert ([metric.n for metric in result.metrics], count(tmp_path)) == ([512, 512], 512)
        stopped = result.provenance["steps"]["notes"]["stopped"]
        assert stopped.startswith("after 512 of 2,048 steps: the standard error of mark, 0.04")
