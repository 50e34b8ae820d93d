"""Writing values into series: those of evaluations, and what every writer of the history needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from evalsvc.spec.documents import Metric
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.reading import read
from evalsvc.store.history.version import touch_history
from evalsvc.store.tables import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    Base,
    Evaluation,
    MetricValue,
    Protocol,
    Series,
)

WORDS: Mapping[int, Word] = {NAN: "NaN", POSITIVE_INFINITY: "Infinity", NEGATIVE_INFINITY: "-Infinity"}
"""How JSON has the kinds of values that are not finite."""

_KINDS = {word: kind for kind, word in WORDS.items()}

VALUE_COLUMNS = ("value", "kind", "stderr", "n", "groups", "evaluation_id", "import_id")
"""All of a value but its place."""


def write_values(
    session: Session,
    evaluation: Evaluation,
    metrics: Sequence[Mapping[str, object]],
    protocols: Mapping[str, Mapping[str, object]],
) -> None:
    """Put an evaluation's metrics (as `MetricValue.to_json` writes them) into their series at its step.

    A value that a later evaluation wrote stays: re-evaluation replaces, whatever the order of finishing. An imported
    value gives way to a measured one.
    """
    write_protocols(session, protocols)
    if not metrics:
        return
    touch_history(session, evaluation.checkpoint.run_id)
    rows = [_row(session, evaluation, read(Metric, metric)) for metric in metrics]
    statement = insert(session, MetricValue).values(rows)
    new = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["series_id", "step"],
            set_={name: new[name] for name in VALUE_COLUMNS},
            where=or_(MetricValue.evaluation_id.is_(None), new.evaluation_id >= MetricValue.evaluation_id),
        )
    )


def _row(session: Session, evaluation: Evaluation, metric: Metric) -> dict[str, object]:
    checkpoint = evaluation.checkpoint
    key = SeriesKey(checkpoint.run_id, metric.name, checkpoint.variant, metric.protocol)
    value, kind = stored(metric.value)
    return {
        "series_id": series_id(session, key, metric.unit, metric.direction, metric.baseline),
        "step": checkpoint.step,
        "value": value,
        "kind": kind,
        "stderr": None if isinstance(metric.stderr, str) else metric.stderr,
        "n": metric.n,
        "groups": metric.groups,
        "evaluation_id": evaluation.id,
        "import_id": None,
    }


@dataclass(frozen=True)
class SeriesKey:
    """What is one series."""

    run_id: int
    metric: str
    variant: str
    protocol_id: str


def series_id(session: Session, key: SeriesKey, unit: str, direction: str, baseline: float | Word | None) -> int:
    """The id of a series; it begins here where there is none. Another writer may begin it at the same moment."""
    query = select(Series.id).filter_by(**vars(key))
    found = session.scalar(query)
    if found is None:
        new = {**vars(key), "unit": unit, "direction": direction, "baseline": baseline}
        session.execute(insert(session, Series).values(new).on_conflict_do_nothing())
        found = session.scalar(query)
        assert found is not None
    return found


def write_protocols(session: Session, protocols: Mapping[str, Mapping[str, object]]) -> None:
    """Keep what protocol ids stand for."""
    for protocol_id, content in protocols.items():
        new = {"id": protocol_id, "content": dict(content)}
        session.execute(insert(session, Protocol).values(new).on_conflict_do_nothing(index_elements=["id"]))


def stored(value: float | Word) -> tuple[float | None, int]:
    """Return a number as JSON has it as `metric_values.value` and `kind` hold it."""
    return (None, _KINDS[value]) if isinstance(value, str) else (value, FINITE)


def insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that may say ON CONFLICT."""
    # The two dialects spell it alike, but in classes of their own.
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
