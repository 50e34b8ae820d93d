"""Verdicts on the newest values of a run: against the run's best values so far, and against the values of the base.

Measured values are compared as `GET /v1/compare` does, paired over their items. Imported values are compared by their
own standard errors, if both are known.

The best of K values is partly luck: at `LEVEL`, the newest of 20 equal checkpoints would be worse than the best in a
fifth of runs. So its verdict has the level 1 − (1 − LEVEL) / (K − 1), by Bonferroni.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from evalsvc.compare.contrast import apart, contrast_results
from evalsvc.compare.difference_curves import level_of_looks
from evalsvc.compare.result import Result
from evalsvc.errors import ItemsLost
from evalsvc.metrics.distance import Distance
from evalsvc.metrics.intervals import LEVEL
from evalsvc.metrics.ratio import Ratio
from evalsvc.spec.documents.history import BestPoint, HeadlineSeries, NewestVerdict, OtherSide, Point
from evalsvc.spec.names import checkpoint_name
from evalsvc.spec.protocol import number_to_json

Read = Callable[[str], Result | None]
"""A function that returns the result of a checkpoint by its name, RUN@STEP or RUN@STEP:VARIANT; None without one."""


def with_verdicts(run: str, series: Sequence[HeadlineSeries], read: Read) -> list[HeadlineSeries]:
    """Return the headline series of a run with verdicts on their newest values.

    A newest value that is the best one, or the base's, has no verdict against itself.
    """
    return [item.model_copy(update={"verdicts": list(_verdicts(run, item, read))}) for item in series]


def _verdicts(run: str, series: HeadlineSeries, read: Read) -> Iterator[NewestVerdict]:
    newest = checkpoint_name(run, series.latest.step, series.variant)
    for side, name, other in _others(run, series):
        if name == newest:
            continue
        distance = _distance(series, other, name, newest, read)
        finite, best_of = math.isfinite(distance.value), other.of if isinstance(other, BestPoint) else 1
        level = level_of_looks(LEVEL, best_of - 1)
        yield NewestVerdict(
            side=side,
            checkpoint=name,
            difference=number_to_json(distance.value),
            stderr=None if distance.stderr is None else number_to_json(distance.stderr),
            verdict=(distance.verdict(level, series.direction) if finite else None) or "no_error_known",
            basis=distance.basis,
            best_of=best_of,
            level=level,
        )


def _others(run: str, series: HeadlineSeries) -> Iterator[tuple[OtherSide, str, Point]]:
    if series.best is not None:
        yield "best", checkpoint_name(run, series.best.step, series.variant), series.best
    if series.base is not None and series.base_name is not None:
        yield "base", series.base_name, series.base


def _distance(series: HeadlineSeries, other: Point, name: str, newest: str, read: Read) -> Distance:
    if series.latest.import_ is None and other.import_ is None:
        a, b = read(name), read(newest)
        if a is not None and b is not None:
            with suppress(ItemsLost):
                for contrast in contrast_results(a, b, lambda metric: metric == series.metric):
                    if contrast.metric.protocol == series.protocol and contrast.distance is not None:
                        return contrast.distance
    return apart(_ratio(other), _ratio(series.latest), unit=series.unit)


def _ratio(point: Point) -> Ratio:
    return Ratio(float(point.value), point.stderr, point.n or 0, point.groups)
