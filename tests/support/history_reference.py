"""What a history should read as, over plain rows: the slow reference of the store's queries, and histories to ask."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from posts_and_results import act, ask, enter, submission

from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.value_interval import ends_of, value_interval
from evalsvc.spec.documents import history as documents
from evalsvc.spec.protocol import Protocol, number_to_json
from evalsvc.store.history.imports import Imported, import_values
from evalsvc.store.history.reading import read_history
from evalsvc.store.session import Store

MOST = 2**63 - 1

SPECIAL = (math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 1e290, 5e-324, -5e-324, 0.0, -0.0)


@dataclass(frozen=True)
class Point:
    step: int
    value: float
    stderr: float | None
    n: int | None

    @property
    def ends(self) -> tuple[float | None, float | None]:
        known = self.stderr is not None and self.n is not None
        return ends_of(value_interval(Ratio(self.value, self.stderr, self.n or 0))) if known else (None, None)


History = dict[str, list[Point]]
"""By metric. The direction of a metric is how its name begins."""


def random_history(seed: int, series: int = 4, size: int = 40, steps: int = 200) -> History:
    own = random.Random(seed)
    found: History = {}
    for index in range(series):
        pool = own.sample(range(steps), own.randint(1, size)) + own.choice(([], [MOST]))
        found[f"{('lower', 'higher', 'none')[index % 3]}/{index}"] = [
            Point(step, _value(own, index % 2 == 1), own.choice((None, own.random())), own.choice((None, 400)))
            for step in pool
        ]
    return found


def _value(own: random.Random, special: bool) -> float:
    return own.choice(SPECIAL) if special and own.random() < 0.4 else own.gauss(0, 10.0 ** own.randint(-3, 3))


def imported(metric: str, points: Sequence[Point], **fields: Any) -> Imported:
    """A series as it is imported; a metric such as `higher/x` has the direction in its name."""
    word = metric.partition("/")[0]
    direction = word if word in ("higher", "none") else "lower"
    rest = {"unit": "nats/token" if word == "loss" else "", "direction": direction, "protocol": Protocol({"limit": 1})}
    return Imported(
        metric,
        step=[point.step for point in points],
        value=[number_to_json(point.value) or 0.0 for point in points],
        stderr=[point.stderr for point in points],
        n=[point.n for point in points],
        **(rest | fields),
    )


def history_of(store: Store, run: str = "run-a", **options: Any) -> documents.History:
    return ask(store, read_history, run, **options)


def write(store: Store, history: History, run: str = "run-a", source: str = "test", replace: bool = False) -> None:
    act(store, import_values, run, source, [imported(*item) for item in history.items()], replace)


def post_tokens(store: Store, tokens: dict[int, int], run: str = "run-a") -> None:
    """Checkpoints that have seen so many tokens, by step. None is evaluated."""
    for step, seen in tokens.items():
        enter(store, submission(step, run=run, tokens_seen=seen))


def along(points: Iterable[Point], tokens: dict[int, int] | None) -> list[tuple[int, Point]]:
    """(x, value) in order; what has no place on the axis is left out."""
    placed = [(point.step if tokens is None else tokens.get(point.step), point) for point in points]
    return sorted(((x, point) for x, point in placed if x is not None), key=lambda item: (item[0], item[1].step))


def within(placed: Iterable[tuple[int, Point]], first: int | None, last: int | None) -> list[tuple[int, Point]]:
    return [item for item in placed if (first is None or item[0] >= first) and (last is None or item[0] <= last)]


def buckets(placed: Sequence[tuple[int, Point]], start: int, width: int) -> list[dict[str, Any]]:
    by_number: dict[int, list[tuple[int, Point]]] = {}
    for x, point in placed:
        by_number.setdefault((x - start) // width, []).append((x, point))
    return [_bucket(rows) for rows in by_number.values()]


def _bucket(rows: Sequence[tuple[int, Point]]) -> dict[str, Any]:
    values = [point.value for _, point in rows]
    finite = [value for value in values if math.isfinite(value)]
    has_mean = bool(finite) and max(map(abs, finite)) < 1e290
    mean = float(sum(map(Fraction, finite)) / len(finite)) if has_mean else None
    x, last = rows[-1]
    bucket: dict[str, Any] = {"x": x, "last": number_to_json(last.value), "stderr": last.stderr, "n": last.n}
    bucket |= {"low": last.ends[0], "high": last.ends[1], "mean": mean, "count": len(rows), "imported": len(rows)}
    bucket |= {"min": min(finite, default=None), "max": max(finite, default=None), "virtual": False}
    infinite = {"positive_infinity": values.count(math.inf), "negative_infinity": values.count(-math.inf)}
    return bucket | {"nan": sum(math.isnan(value) for value in values), **infinite}


def best(points: Iterable[Point], direction: str) -> Point | None:
    finite = [point for point in points if math.isfinite(point.value)]
    if direction == "none" or not finite:
        return None
    sign = 1 if direction == "lower" else -1
    return min(finite, key=lambda point: (sign * point.value, point.step))
