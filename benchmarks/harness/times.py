"""Times as metrics that the gate compares, and ratios of times over turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from evalsvc.metrics.intervals import LEVEL, MIN_ITEMS, Spread, bend_of, confidence_interval
from evalsvc.spec.documents.results import ResultDocument, TaskMetric
from evalsvc.spec.protocol import Protocol
from harness.document import Ratio, TimedTask, Times

CLOCKS: Mapping[str, str] = {"cpu": "cpu_seconds", "wall": "wall_seconds"}
"""Metric of each clock."""

BETWEEN_RUNS = 0.039
"""Standard deviation of ratios of processor times between runs of equal code, as in `tests/harness/clean_runs.json`."""

ONE_RUN = (
    "Intervals of ratios are over the turns within one run. They leave out what differs between runs of equal code: "
    f"{BETWEEN_RUNS:.1%} of processor time (one standard deviation)."
)


def ratio_of(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Return the ratio of the candidate's times to the baseline's; both lists have the same turns in the same order."""
    ratios = [mine / other for mine, other in zip(candidate, baseline, strict=True)]
    logs = [math.log(ratio) for ratio in ratios]
    mean, turns = math.fsum(logs) / len(logs), len(logs)
    low = high = None
    if turns >= MIN_ITEMS and len(set(logs)) > 1:
        spread = Spread(statistics.stdev(logs) / math.sqrt(turns), turns - 1, bend_of([log - mean for log in logs]))
        interval = confidence_interval(mean, spread)
        low, high = math.exp(interval.low), math.exp(interval.high)
    return Ratio(median=statistics.median(ratios), mean=math.exp(mean), low=low, high=high, level=LEVEL, turns=turns)


def times_as_metrics(timed: Sequence[TimedTask], run: str, *, of_baseline: bool) -> ResultDocument:
    """Return the times of the candidate, or of the baseline, as a result: a metric for each task and clock.

    The items are turns, so the gate pairs both sides by turn. `run` is part of the protocol: the gate refuses to
    compare times of two runs of the harness.
    """
    metrics: list[TaskMetric] = []
    protocols: dict[str, dict[str, object]] = {}
    items: dict[str, list[dict[str, object]]] = {}
    for task in timed:
        times = task.baseline if of_baseline else task.candidate
        if times is None:
            continue
        columns = {"cpu": times.cpu, "wall": times.wall}
        for clock, metric in CLOCKS.items():
            protocol = Protocol({"task": "speed", "timed": dict(task.task), "clock": clock, "run": run})
            protocols[protocol.id] = dict(protocol.content)
            metrics.append(_metric(task.name, metric, columns[clock], protocol.id))
        items[task.name] = [
            {"index": turn, "cpu_seconds": cpu, "wall_seconds": wall}
            for turn, (cpu, wall) in enumerate(zip(times.cpu, times.wall, strict=True))
        ]
    return ResultDocument(metrics=metrics, protocols=protocols, items=items)


def _metric(task: str, name: str, seconds: Sequence[float], protocol: str) -> TaskMetric:
    n = len(seconds)
    return TaskMetric(
        name=f"{task}/{name}",
        value=math.fsum(seconds) / n,
        stderr=statistics.stdev(seconds) / math.sqrt(n) if n > 1 else None,
        n=n,
        unit="s",
        direction="lower",
        protocol=protocol,
        items=[name],
        task=task,
    )


def with_ratios(
    name: str, task: Mapping[str, object], candidate: Times, baseline: Times | None, problem: str
) -> TimedTask:
    """Return a timed task with its ratios, where there is a baseline."""
    return TimedTask(
        name=name,
        task=dict(task),
        candidate=candidate,
        baseline=baseline,
        problem=problem,
        cpu=None if baseline is None else ratio_of(candidate.cpu, baseline.cpu),
        wall=None if baseline is None else ratio_of(candidate.wall, baseline.wall),
    )
