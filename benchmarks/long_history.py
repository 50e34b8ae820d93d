"""A history of many runs with many metrics, written to the store as evaluations leave it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert

from evalsvc.config import Settings
from evalsvc.store.data_folder import claim_data_folder
from evalsvc.store.lock import database_id
from evalsvc.store.session import Store, open_store
from evalsvc.store.tables import Checkpoint, Evaluation, Protocol, Run, Series, Task

PROTOCOL = "00000000000000aa"

STEP = 100
"""Training steps between two checkpoints."""


@dataclass(frozen=True)
class History:
    """Sizes of a history."""

    runs: int = 50
    metrics: int = 50
    steps: int = 2_000

    def __str__(self) -> str:
        return f"{self.runs} runs × {self.metrics} metrics × {self.steps:,} steps"


def fill(settings: Settings, history: History) -> None:
    """Write the history. Rows go to the tables directly: evaluating 100,000 checkpoints would take days."""
    store = open_store(settings.database, migrate=False)
    claim_data_folder(settings.data_path, database_id(store), store.url)
    with store.transaction() as session:
        session.add(Protocol(id=PROTOCOL, content={"synthetic": True}))
    for number in range(history.runs):
        _fill_run(store, number, history)
    store.close()


def _fill_run(store: Store, number: int, history: History) -> None:
    own = random.Random(number)
    name, steps, first = f"run-{number:02d}", range(0, history.steps * STEP, STEP), number * history.steps + 1
    names = [f"bench{index:02d}/{'acc' if index % 2 else 'loss'}" for index in range(history.metrics)]
    curves = [_curve(own, metric.endswith("acc"), history.steps) for metric in names]
    with store.transaction() as session:
        run = Run(name=name, history_version=1)
        session.add(run)
        session.flush()
        tags = {"seed": str(number % 5), "width": str(512 * (1 + number // 5))}
        ids = range(first, first + history.steps)
        session.execute(
            insert(Checkpoint), [_checkpoint(run.id, *place, tags) for place in zip(ids, steps, strict=True)]
        )
        session.execute(insert(Evaluation), [_evaluation(identity) for identity in ids])
        known = {0, history.steps - 1, *(_best(curve, metric) for curve, metric in zip(curves, names, strict=True))}
        session.execute(
            insert(Task), [_task(first + at, names, [curve[at] for curve in curves]) for at in sorted(known)]
        )
        series = [Series(run_id=run.id, variant="raw", protocol_id=PROTOCOL, **_kind(metric)) for metric in names]
        session.add_all(series)
        session.flush()
        values = (
            (row.id, step, value, 0, 0.01, 1000, identity)
            for row, curve in zip(series, curves, strict=True)
            for identity, step, value in zip(ids, steps, curve, strict=True)
        )
        columns = "series_id, step, value, kind, stderr, n, evaluation_id"
        statement = f"INSERT INTO metric_values ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        session.connection().exec_driver_sql(statement, list(values))


def _curve(own: random.Random, rises: bool, steps: int) -> list[float]:
    """Return a noisy curve that saturates."""
    falls = (math.exp(-4 * at / steps) + own.gauss(0, 0.01) for at in range(steps))
    return [0.8 - 0.5 * value if rises else 2.0 + 4 * value for value in falls]


def _best(curve: Sequence[float], metric: str) -> int:
    return curve.index(max(curve) if metric.endswith("acc") else min(curve))


def _kind(metric: str) -> dict[str, str]:
    is_share = metric.endswith("acc")
    return {
        "metric": metric,
        "unit": "fraction" if is_share else "nats/token",
        "direction": "higher" if is_share else "lower",
    }


def _checkpoint(run: int, identity: int, step: int, tags: Mapping[str, str]) -> dict[str, Any]:
    path = f"/checkpoints/{run}/epoch_{step}.pt"
    place = {"id": identity, "run_id": run, "step": step, "variant": "raw", "uri": path, "path": path}
    return {**place, "size": 1, "mtime_ns": 1, "tokens_seen": step * 4096, "tags": tags, "spool": "none"}


def _evaluation(identity: int) -> dict[str, Any]:
    state = "failed" if identity % 997 == 0 else "succeeded"
    error = {"code": "non_finite", "message": "layer 3 gives NaN"} if state == "failed" else None
    same = {"id": identity, "checkpoint_id": identity, "suite": "synthetic", "suite_digest": "a" * 64}
    return {**same, "state": state, "event_count": 5, "error": error}


def _task(evaluation: int, names: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    """Return the task of an evaluation, with metrics: only few have any, or the database would have 10 GB of them."""
    metrics = [
        {"name": kind.pop("metric"), "value": value, "stderr": 0.01, "n": 1000, "protocol": PROTOCOL, **kind}
        for name, value in zip(names, values, strict=True)
        for kind in [_kind(name)]
    ]
    same = {"evaluation_id": evaluation, "index": 0, "kind": "loss", "name": "loss", "parameters": {}}
    return {**same, "state": "succeeded", "metrics": metrics}
