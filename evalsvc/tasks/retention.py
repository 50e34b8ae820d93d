"""What is left of a base's abilities, as metrics: right answers lost and gained, and accuracy above chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalsvc.metrics.intervals import Interval
from evalsvc.metrics.paired import interval_of_mean, mean_of
from evalsvc.metrics.ratio import Ratio
from evalsvc.protocol import Direction, MetricValue, Protocol
from evalsvc.tasks.base_comparison import SCOPES, accuracy_of
from evalsvc.tasks.comparison_rows import ABOVE_CHANCE, Row
from evalsvc.tasks.random_baselines import Baseline

if TYPE_CHECKING:
    from evalsvc.language.results import Results


@dataclass(frozen=True)
class Retained:
    """How much of the base's ability is left, over several benchmarks."""

    metrics: list[MetricValue]
    intervals: dict[str, Interval]
    """Of the metrics that have one, by name."""
    counted: list[str]
    """Benchmarks where the base is above chance, over all ids."""
    at_chance: list[str]
    """The others that have an accuracy."""


def benchmark_metrics(
    task: str, rows: Sequence[Row], own: Results, protocol: Mapping[str, Any]
) -> Iterator[MetricValue]:
    """Of each benchmark's accuracy, over all ids and within text:

    `<task>/<benchmark>_lost`, `…_gained`: share of the questions that only the base gets right, or only the checkpoint;
    `<task>/<benchmark>_retained`: share of the base's accuracy above chance that is left, where it is above chance.

    `protocol` is put over that of the accuracy.
    """
    for row, accuracy in _accuracies(rows, own):
        content = {**accuracy.protocol.content, **protocol}
        suffix = "" if row.scope == "all" else "_within"
        kinds: tuple[tuple[str, int, Direction], ...] = (("lost", row.lost, "lower"), ("gained", row.gained, "higher"))
        for name, count, direction in kinds:
            share = _share(count, row.n)
            found = (share.value, share.stderr, share.n, "fraction", direction)
            yield MetricValue(f"{task}/{row.what}_{name}{suffix}", *found, Protocol(content))
        if row.retained is not None:
            retained = (row.retained, row.retained_stderr, row.n, "fraction", "higher")
            above = Protocol({**content, "chance": _chance(row).to_json()})
            yield MetricValue(f"{task}/{row.what}_retained{suffix}", *retained, above, 0.0)  # type: ignore[arg-type]


def centred(task: str, rows: Sequence[Row], own: Results, protocol: Mapping[str, Any]) -> Iterator[MetricValue]:
    """`<task>/centred`: the mean over benchmarks of the checkpoint's (accuracy − chance) / (1 − chance).

    The base has no part in it.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794).
    """
    for scope in SCOPES:
        some = [
            (row, accuracy) for row, accuracy in _accuracies(rows, own) if row.scope == ("text" if scope else "all")
        ]
        mean = mean_of([_centred(row) for row, _ in some])
        if mean is not None:
            content = {**protocol, "members": {accuracy.name: accuracy.protocol.id for _, accuracy in some}}
            content["chance"] = {row.what: _chance(row).to_json() for row, _ in some}
            found = (mean.value, mean.stderr, mean.n, "fraction", "higher")
            yield MetricValue(f"{task}/centred{scope}", *found, Protocol(content), 0.0)  # type: ignore[arg-type]


def text_retained(task: str, rows: Sequence[Row], own: Results, protocol: Mapping[str, Any]) -> Retained:
    """`<task>/text_retained`: the mean over benchmarks of (accuracy − chance) / (the base's accuracy − chance).

    Only benchmarks count where the base is above chance by `ABOVE_CHANCE` of its standard errors: elsewhere the
    quotient is of noise. Where there is none, there is no metric.

    Source: the centred accuracies of DCLM's CORE (Li et al., arXiv 2406.11794), as a share of the base's.
    """
    of_all = [row for row, _ in _accuracies(rows, own) if row.scope == "all"]
    counted = [row.what for row in of_all if row.retained is not None]
    found = Retained([], {}, counted, [row.what for row in of_all if row.what not in counted])
    for scope in SCOPES:
        above = [each for each in _accuracies(rows, own) if each[0].retained is not None]
        some = [each for each in above if each[0].scope == SCOPES[scope]]
        mean = mean_of([Ratio(row.retained or 0.0, row.retained_stderr, row.n) for row, _ in some])
        if mean is None:
            continue
        content = {
            **protocol,
            "members": {accuracy.name: accuracy.protocol.id for _, accuracy in some},
            "above_chance": ABOVE_CHANCE,
            **_other_chances(some),
        }
        metric = (mean.value, mean.stderr, mean.n, "fraction", "higher", Protocol(content), 0.0)
        found.metrics.append(MetricValue(f"{task}/text_retained{scope}", *metric))  # type: ignore[arg-type]
        if (interval := _interval_of_mean([row for row, _ in some])) is not None:
            found.intervals[f"{task}/text_retained{scope}"] = interval
    return found


def _accuracies(rows: Sequence[Row], own: Results) -> Iterator[tuple[Row, MetricValue]]:
    """The rows that are about an accuracy, with the checkpoint's."""
    for row in rows:
        accuracy = accuracy_of(own, row.what, "_within" if row.scope == "text" else "")
        if row.chance is not None and accuracy is not None:
            yield row, accuracy


def _other_chances(some: Sequence[tuple[Row, MetricValue]]) -> dict[str, Any]:
    """Where chance is right options / options the members' digests say so, and nothing is added."""
    other = {row.what: _chance(row).to_json() for row, accuracy in some if row.chance != accuracy.baseline}
    return {"chance": other} if other else {}


def _chance(row: Row) -> Baseline:
    assert row.chance is not None, "a row of an accuracy has one"
    return Baseline(row.chance, row.chance_table)


def _centred(row: Row) -> Ratio:
    scale = 1 - _chance(row).value
    stderr = None if row.checkpoint_stderr is None else row.checkpoint_stderr / scale
    return Ratio((row.checkpoint - _chance(row).value) / scale, stderr, row.n)


def _share(count: int, n: int) -> Ratio:
    share = count / n
    return Ratio(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None, n)


def _interval_of_mean(rows: Sequence[Row]) -> Interval | None:
    values, intervals = [], []
    for row in rows:
        if row.retained is None or row.retained_interval is None:
            return None
        values.append(row.retained)
        intervals.append(row.retained_interval)
    return interval_of_mean(values, intervals)
