"""Writing values into series: those of evaluations, and what every writer of the history needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from evalsvc.store.history.version import touch_history
from evalsvc.store.tables import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    Evaluation,
    MetricValue,
    Protocol,
    Series,
)

NOT_FINITE = {"NaN": NAN, "Infinity": POSITIVE_INFINITY, "-Infinity": NEGATIVE_INFINITY}
"""The words that JSON has for them, by `metric_values.kind`."""

VALUE_COLUMNS = ("value", "kind", "stderr", "n", "groups", "evaluation_id", "import_id")
"""All of a value but its place."""


def write_values(
    session: Session,
    evaluation: Evaluation,
    metrics: Iterable[Mapping[str, Any]],
    protocols: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put an evaluation's metrics (as `MetricValue.to_json` writes them) into their series at its step.

    A value that a later evaluation wrote stays: re-evaluation replaces, whatever the order of finishing. An imported
    value gives way to a measured one.
    """
    checkpoint = evaluation.checkpoint
    metrics = list(metrics)
    if metrics:
        touch_history(session, checkpoint.run_id)
    write_protocols(session, protocols)
    rows = []
    for metric in metrics:
        key = SeriesKey(checkpoint.run_id, metric["name"], checkpoint.variant, metric["protocol"])
        rows.append(
            {
                "series_id": series_id(session, key, metric["unit"], metric["direction"], metric["baseline"]),
                "step": checkpoint.step,
                **stored(metric["value"]),
                "stderr": None if isinstance(metric["stderr"], str) else metric["stderr"],
                "n": metric["n"],
                # A worker of an older version says nothing of groups.
                "groups": metric.get("groups"),
                "evaluation_id": evaluation.id,
                "import_id": None,
            }
        )
    if not rows:
        return
    statement = insert(session, MetricValue).values(rows)
    new = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["series_id", "step"],
            set_={name: new[name] for name in VALUE_COLUMNS},
            where=or_(MetricValue.evaluation_id.is_(None), new.evaluation_id >= MetricValue.evaluation_id),
        )
    )


@dataclass(frozen=True)
class SeriesKey:
    """What is one series."""

    run_id: int
    metric: str
    variant: str
    protocol_id: str


def series_id(session: Session, key: SeriesKey, unit: str, direction: str, baseline: float | None) -> int:
    """The id of a series; it begins here where there is none. Another writer may begin it at the same moment."""
    query = select(Series.id).filter_by(**vars(key))
    found = session.scalar(query)
    if found is None:
        new = {**vars(key), "unit": unit, "direction": direction, "baseline": baseline}
        session.execute(insert(session, Series).values(new).on_conflict_do_nothing())
        found = session.scalar(query)
        assert found is not None
    return found


def write_protocols(session: Session, protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what protocol ids stand for."""
    for protocol_id, content in protocols.items():
        new = {"id": protocol_id, "content": dict(content)}
        session.execute(insert(session, Protocol).values(new).on_conflict_do_nothing(index_elements=["id"]))


def stored(value: float | str) -> dict[str, Any]:
    """A number as JSON has it, as the columns that hold it."""
    if isinstance(value, str):
        return {"value": None, "kind": NOT_FINITE[value]}
    return {"value": value, "kind": FINITE}


def insert(session: Session, table: type[Any]) -> Any:
    """An INSERT that may say ON CONFLICT."""
    # The two dialects spell it alike, but in classes of their own.
    return (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(table)
