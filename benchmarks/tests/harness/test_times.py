"""Ratios over turns, and times as a result that the gate compares by turn."""

import math
import statistics
from collections.abc import Sequence

import pytest
from harness.document import TimedTask, Times
from harness.times import ratio_of, times_as_metrics, with_ratios

from evalsvc.compare.gate import compare
from evalsvc.compare.gate_report import Comparison
from evalsvc.compare.gate_rules import Rule
from evalsvc.compare.result import Result
from evalsvc.metrics.intervals import critical_value

RULES = (Rule(metric="speed-*/cpu_seconds", relative=0.15), Rule(metric="speed-*/wall_seconds", relative=0.5))

STEADY = [1.0, 1.02, 0.99, 1.01, 1.0, 0.98, 1.03, 1.01, 0.99, 1.0]


def timed(candidate: Sequence[float], baseline: Sequence[float], name: str = "speed-loss") -> TimedTask:
    sides = [Times(cpu=list(seconds), wall=list(seconds)) for seconds in (candidate, baseline)]
    return with_ratios(name, {"kind": "loss"}, sides[0], sides[1], "")


def judged(*tasks: TimedTask, runs: tuple[str, str] = ("a", "a")) -> dict[str, Comparison]:
    candidate, baseline = (
        Result(name, times_as_metrics(tasks, run, of_baseline=name == "baseline"))
        for name, run in zip(("candidate", "baseline"), runs, strict=True)
    )
    return {comparison.metric: comparison for comparison in compare(candidate, baseline, RULES).comparisons}


def test_the_interval_is_students_over_the_logarithms_of_turns() -> None:
    """Symmetric logarithms have no skew, so the guard against skew changes nothing."""
    logs = [-0.03, -0.02, -0.01, 0.0, 0.0, 0.01, 0.02, 0.03]
    ratio = ratio_of([math.exp(0.1 + log) for log in logs], [1.0] * 8)
    reach = critical_value(0.025, 7) * statistics.stdev(logs) / math.sqrt(8)
    assert ratio.mean == pytest.approx(math.exp(0.1))
    assert ratio.median == pytest.approx(math.exp(0.1))
    assert ratio.low == pytest.approx(math.exp(0.1 - reach))
    assert ratio.high == pytest.approx(math.exp(0.1 + reach))
    assert (ratio.level, ratio.turns) == (0.95, 8)


def test_few_turns_have_no_interval() -> None:
    assert ratio_of([2.0] * 3, [1.0, 1.1, 1.2]).low is None


def test_what_disturbs_both_sides_of_a_turn_moves_no_ratio() -> None:
    machine = [1.0, 3.0, 1.5, 9.0, 1.0, 2.0, 4.0, 1.0]
    ratio = ratio_of([1.1 * factor for factor in machine], machine)
    assert (ratio.median, ratio.mean) == (pytest.approx(1.1), pytest.approx(1.1))


def test_the_gate_pairs_turns() -> None:
    """Turns differ threefold, and a slow-down of 30 % is still found: each turn is compared with itself."""
    machine = [1.0, 3.0, 1.5, 2.5, 1.0, 2.0, 3.0, 1.0, 1.2, 2.2]
    found = judged(timed([1.3 * factor for factor in machine], machine))
    comparison = found["speed-loss/cpu_seconds"]
    assert comparison.verdict == "worse"
    assert comparison.difference is not None
    assert (comparison.difference.basis, comparison.difference.n) == ("paired", 10)
    assert found["speed-loss/wall_seconds"].verdict != "worse", "wall time has a larger tolerance"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "within_tolerance"), (1.1, "within_noise"), (1.3, "worse")])
def test_a_slow_down_is_worse_beyond_the_tolerance(factor: float, verdict: str) -> None:
    noise = STEADY[1:] + STEADY[:1]
    found = judged(timed([factor * seconds for seconds in noise], STEADY))
    assert found["speed-loss/cpu_seconds"].verdict == verdict


def test_times_of_two_runs_are_not_compared() -> None:
    """Another hour is another machine."""
    found = judged(timed(STEADY, STEADY), runs=("a", "b"))
    assert {comparison.verdict for comparison in found.values()} == {"other_protocol"}
    assert "run" in found["speed-loss/cpu_seconds"].reason


def test_a_task_without_a_baseline_is_new() -> None:
    alone = with_ratios("speed-new", {"kind": "loss"}, Times(cpu=STEADY, wall=STEADY), None, "no such parameter")
    assert (alone.cpu, alone.wall, alone.baseline) == (None, None, None)
    found = judged(timed(STEADY, STEADY), alone)
    assert found["speed-new/cpu_seconds"].verdict == "new"
    assert found["speed-loss/cpu_seconds"].verdict == "within_tolerance"
