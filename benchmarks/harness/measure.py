"""The measurement: sides take turns at each timed task, within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from evalsvc.errors import InternalError
from harness.document import TimedTask, Times
from harness.side import Timer, Turn
from harness.suite import TIMED, Bench, Task, name_of
from harness.times import ONE_RUN, with_ratios

Report = Callable[[str], None]


def measure_times(candidate: Timer, baseline: Timer | None, bench: Bench, report: Report) -> list[TimedTask]:
    """Time every task of `speed` on both sides.

    Raises:
        InternalError: the candidate cannot evaluate a task. A baseline that cannot is the task's `problem`.
    """
    measured = [_measure(candidate, baseline, task, bench, report) for task in bench.timed]
    if any(timed.cpu and timed.cpu.low is not None for timed in measured):
        report(ONE_RUN)
    return measured


def _measure(candidate: Timer, baseline: Timer | None, task: Task, bench: Bench, report: Report) -> TimedTask:
    name = TIMED + name_of(task)
    candidate.warm(task)
    baseline, problem = _warmed(baseline, task)
    turns: dict[str, list[Turn]] = {"candidate": [], "baseline": []}
    sides = {"candidate": candidate} | ({} if baseline is None else {"baseline": baseline})
    for turn in range(bench.turns):
        # Whoever comes second finds other caches and another clock, so both do.
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        for side in order:
            turns[side].append(sides[side].time(task, bench.calls))
    timed = with_ratios(
        name,
        task,
        _medians(turns["candidate"]),
        None if baseline is None else _medians(turns["baseline"]),
        problem,
    )
    report(_line(timed))
    return timed


def _warmed(baseline: Timer | None, task: Task) -> tuple[Timer | None, str]:
    """Return the baseline after a first call, or None and the reason why its code cannot evaluate the task."""
    if baseline is None:
        return None, "no code to compare with was given"
    try:
        baseline.warm(task)
    except InternalError as error:
        return None, error.message
    return baseline, ""


def _medians(turns: Sequence[Turn]) -> Times:
    return Times(
        cpu=[statistics.median(turn.cpu) for turn in turns], wall=[statistics.median(turn.wall) for turn in turns]
    )


def _line(timed: TimedTask) -> str:
    seconds = statistics.median(timed.candidate.cpu)
    if timed.cpu is None or timed.wall is None:
        return f"{timed.name:24} {seconds:8.3f} s   not compared: {timed.problem}"
    shown = "" if timed.cpu.low is None else f" ({timed.cpu.low:.3f}–{timed.cpu.high:.3f} within this run)"
    return f"{timed.name:24} {seconds:8.3f} s   {timed.cpu.mean:.3f}{shown} of the baseline, wall {timed.wall.mean:.3f}"
