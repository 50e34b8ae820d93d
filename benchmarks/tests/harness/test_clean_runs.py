"""Five real runs of `quick` with nothing changed: none fails, nor does one whose turns are drawn again.

`clean_runs.json` has their turns, measured while other programs used both cores.
"""

import json
import random
from math import log
from pathlib import Path
from statistics import stdev

import pytest
from harness.document import Machine, TimedTask, Times
from harness.times import BETWEEN_RUNS, times_as_metrics, with_ratios

from evalsvc.compare.gate import compare
from evalsvc.compare.gate_rules import Rules, read_rules
from evalsvc.compare.result import Result

FILE = Path(__file__).with_name("clean_runs.json")
RULES = Path(__file__).parents[2] / "suites" / "rules.yaml"
RESAMPLINGS = 20
SLOWER = 1.3

Run = list[TimedTask]


def runs() -> list[Run]:
    return [[TimedTask.model_validate(timed) for timed in run["timed"]] for run in json.loads(FILE.read_text())["runs"]]


@pytest.fixture(scope="module")
def rules() -> Rules:
    """The rules of the repository that are about times."""
    content = read_rules(RULES)
    return Rules(tuple(rule for rule in content.rules if rule.metric.startswith("speed-")), content.family)


def resampled(timed: TimedTask, draw: random.Random, factor: float = 1.0) -> TimedTask:
    """Draw as many turns with replacement, both sides of a turn together; a factor makes the candidate slower."""
    assert timed.baseline is not None
    turns = len(timed.candidate.cpu)
    chosen = [draw.randrange(turns) for _ in range(turns)]

    def side(times: Times, factor: float) -> Times:
        return Times(
            cpu=[factor * times.cpu[turn] for turn in chosen], wall=[factor * times.wall[turn] for turn in chosen]
        )

    return with_ratios(timed.name, timed.task, side(timed.candidate, factor), side(timed.baseline, 1.0), "")


def worse(run: Run, rules: Rules) -> list[str]:
    """The metrics that the gate calls worse."""
    sides = [
        Result(name, times_as_metrics(run, "run", of_baseline=name == "baseline")) for name in ("candidate", "baseline")
    ]
    report = compare(sides[0], sides[1], rules.rules, rules.family)
    assert report.problems == ()
    assert len(report.comparisons) == 2 * len(run)
    return [comparison.metric for comparison in report.comparisons if comparison.verdict == "worse"]


def test_five_runs_were_recorded_with_the_machine() -> None:
    content = json.loads(FILE.read_text())
    assert len(content["runs"]) == 5
    for run in content["runs"]:
        assert Machine.model_validate(run["machine"]).cores == 2
        assert run["seconds"] < 180
        assert run["problems"] == 0
        assert {timed["name"] for timed in run["timed"]} == {"speed-loss", "speed-sampling", "speed-reconstruction"}
        assert all(len(timed["candidate"]["cpu"]) == 12 for timed in run["timed"])


def test_the_interval_of_a_ratio_is_that_of_its_run_alone() -> None:
    """Of equal code it holds 1 in half of the cases: what differs between runs is larger, and is said next to it."""
    ratios = [timed.cpu for run in runs() for timed in run]
    assert sum(ratio.low <= 1 <= ratio.high for ratio in ratios if ratio and ratio.low and ratio.high) == 7
    assert stdev(log(ratio.mean) for ratio in ratios if ratio) == pytest.approx(BETWEEN_RUNS, abs=5e-4)


def test_no_clean_run_fails(rules: Rules) -> None:
    assert [worse(run, rules) for run in runs()] == [[]] * 5


def test_no_resampling_of_a_clean_run_fails(rules: Rules) -> None:
    draw = random.Random(0)
    found = [worse([resampled(timed, draw) for timed in run], rules) for run in runs() for _ in range(RESAMPLINGS)]
    assert found == [[]] * (5 * RESAMPLINGS)


def test_every_resampling_with_a_slow_down_fails_for_every_task(rules: Rules) -> None:
    draw = random.Random(1)
    for run in runs():
        for _ in range(RESAMPLINGS):
            slow = [resampled(timed, draw, SLOWER) for timed in run]
            assert set(worse(slow, rules)) >= {f"{timed.name}/cpu_seconds" for timed in run}


def test_one_slow_task_among_others_is_named(rules: Rules) -> None:
    draw = random.Random(2)
    for run in runs():
        mixed = [resampled(timed, draw, SLOWER if place == 0 else 1.0) for place, timed in enumerate(run)]
        assert worse(mixed, rules) == [f"{run[0].name}/cpu_seconds"]
