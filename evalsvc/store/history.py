"""The history: values of series along training steps, written by merges and read in columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.protocol import distinguishing, number_to_json
from evalsvc.store.submission import find_run
from evalsvc.store.tables import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    Checkpoint,
    Evaluation,
    MetricValue,
    Protocol,
    Series,
)

Axis = Literal["step", "tokens"]

_NOT_FINITE = {"NaN": NAN, "Infinity": POSITIVE_INFINITY, "-Infinity": NEGATIVE_INFINITY}
_FROM_KIND = {NAN: math.nan, POSITIVE_INFINITY: math.inf, NEGATIVE_INFINITY: -math.inf}


def write_values(
    session: Session,
    evaluation: Evaluation,
    metrics: Iterable[Mapping[str, Any]],
    protocols: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put an evaluation's metrics (as `MetricValue.to_json` writes them) into their series at its step.

    A value that a later evaluation wrote stays: re-evaluation replaces, whatever the order of finishing.
    """
    checkpoint = evaluation.checkpoint
    upsert = _insert(session)
    for protocol_id, content in protocols.items():
        session.execute(
            upsert(Protocol).values(id=protocol_id, content=dict(content)).on_conflict_do_nothing(index_elements=["id"])
        )
    rows = []
    for metric in metrics:
        value = metric["value"]
        rows.append(
            {
                "series_id": _series_id(session, checkpoint, metric),
                "step": checkpoint.step,
                "value": None if isinstance(value, str) else value,
                "kind": _NOT_FINITE[value] if isinstance(value, str) else FINITE,
                "stderr": None if isinstance(metric["stderr"], str) else metric["stderr"],
                "n": metric["n"],
                "evaluation_id": evaluation.id,
            }
        )
    if not rows:
        return
    statement = upsert(MetricValue).values(rows)
    new = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["series_id", "step"],
            set_={name: new[name] for name in ("value", "kind", "stderr", "n", "evaluation_id")},
            where=new.evaluation_id >= MetricValue.evaluation_id,
        )
    )


def read_history(
    session: Session, run: str, names: Sequence[str] = (), variant: str | None = None, x: Axis = "step"
) -> dict[str, Any]:
    """A run's series as columns, ordered by x; all of its metrics where `names` is empty.

    Where a metric was measured by several protocols, `differs` of each series has the fields that tell them apart. On
    `x="tokens"`, checkpoints posted without `tokens_seen` have no place on the axis; `omitted` counts them.

    Raises:
        UnknownName: no such run, metric or variant; near misses are named.
        InvalidRequest: x is tokens and no checkpoint of the run says how many it has seen.
    """
    row = find_run(session, run)
    everything = session.scalars(
        select(Series).where(Series.run_id == row.id).order_by(Series.metric, Series.variant, Series.id)
    ).all()
    _check_names("metric", names, {item.metric for item in everything}, "it appears once an evaluation has measured it")
    _check_names("variant", [variant] if variant else [], {item.variant for item in everything}, "")
    chosen = [
        item for item in everything if (not names or item.metric in names) and (not variant or item.variant == variant)
    ]
    tokens = _tokens_seen(session, row.id) if x == "tokens" else {}
    if x == "tokens" and not tokens and chosen:
        raise InvalidRequest(f"no checkpoint of run {run!r} was posted with tokens_seen; read the history with x=step")
    differs = _differing(session, chosen)
    series = [
        {**_columns(session, item, tokens if x == "tokens" else None), "differs": found}
        for item in chosen
        for found in [differs[item.metric, item.protocol_id]]
    ]
    listed = {item.metric: {"name": item.metric, "unit": item.unit, "direction": item.direction} for item in everything}
    return {"run": run, "x": x, "series": series, "names": list(listed.values())}


def read_protocol(session: Session, protocol_id: str) -> dict[str, Any]:
    """The content of a protocol by its id."""
    row = session.get(Protocol, protocol_id)
    if row is None:
        raise UnknownName.among("protocol", protocol_id, session.scalars(select(Protocol.id)))
    return row.content


def finite_or_not(value: float | None, kind: int) -> float | None:
    """The number that `metric_values` holds."""
    return _FROM_KIND.get(kind, value)


def _differing(session: Session, series: Iterable[Series]) -> dict[tuple[str, str], dict[str, Any]]:
    """By metric and protocol: the fields in which the protocols of a metric are not all alike."""
    ids: dict[str, list[str]] = {}
    for item in series:
        if item.protocol_id not in (known := ids.setdefault(item.metric, [])):
            known.append(item.protocol_id)
    several = {identity for known in ids.values() if len(known) > 1 for identity in known}
    rows = session.scalars(select(Protocol).where(Protocol.id.in_(several))) if several else ()
    contents = {row.id: row.content for row in rows}
    return {
        (metric, identity): fields
        for metric, known in ids.items()
        for identity, fields in zip(known, distinguishing([contents.get(item, {}) for item in known]), strict=True)
    }


def _columns(session: Session, series: Series, tokens: Mapping[tuple[str, int], int] | None) -> dict[str, Any]:
    rows = session.execute(
        select(MetricValue.step, MetricValue.value, MetricValue.kind, MetricValue.stderr, MetricValue.n)
        .where(MetricValue.series_id == series.id)
        .order_by(MetricValue.step)
    ).all()
    points = [(row.step, row) for row in rows]
    if tokens is not None:
        placed = [(tokens.get((series.variant, row.step)), row) for row in rows]
        points = sorted(((at, row) for at, row in placed if at is not None), key=lambda point: point[0])
    return {
        "metric": series.metric,
        "variant": series.variant,
        "protocol": series.protocol_id,
        "unit": series.unit,
        "direction": series.direction,
        "baseline": series.baseline,
        "x": [at for at, _ in points],
        "value": [number_to_json(finite_or_not(row.value, row.kind)) for _, row in points],
        "stderr": [row.stderr for _, row in points],
        "n": [row.n for _, row in points],
        "omitted": len(rows) - len(points),
    }


def _tokens_seen(session: Session, run_id: int) -> dict[tuple[str, int], int]:
    rows = session.execute(
        select(Checkpoint.variant, Checkpoint.step, Checkpoint.tokens_seen).where(
            Checkpoint.run_id == run_id, Checkpoint.replaced_at.is_(None), Checkpoint.tokens_seen.is_not(None)
        )
    )
    return {(row.variant, row.step): row.tokens_seen for row in rows}


def _check_names(kind: str, names: Sequence[str], known: set[str], hint: str) -> None:
    for name in names:
        if name not in known:
            raise UnknownName.among(kind, name, known, hint)


def _series_id(session: Session, checkpoint: Checkpoint, metric: Mapping[str, Any]) -> int:
    key = {
        "run_id": checkpoint.run_id,
        "variant": checkpoint.variant,
        "metric": metric["name"],
        "protocol_id": metric["protocol"],
    }
    series = session.scalar(select(Series).filter_by(**key))
    if series is None:
        series = Series(**key, unit=metric["unit"], direction=metric["direction"], baseline=metric["baseline"])
        session.add(series)
        session.flush()
    return series.id


def _insert(session: Session) -> Any:
    # The two dialects spell INSERT … ON CONFLICT alike, but in classes of their own.
    return postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
