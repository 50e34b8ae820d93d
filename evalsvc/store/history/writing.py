"""Write the values of evaluations into series, and what every writer of the history shares: keys and versions.

The version of a run's history grows with every change of the history. The ETag of answers contains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from evalsvc.errors import InvalidData
from evalsvc.spec.documents import Metric
from evalsvc.spec.documents.fields import Direction, Word
from evalsvc.spec.protocol import digest
from evalsvc.store.tables import FINITE, WORDS, Base, Evaluation, MetricValue, Protocol, Run, Series

_KINDS = {word: kind for kind, word in WORDS.items()}

VALUE_COLUMNS = ("value", "kind", "stderr", "low", "high", "n", "groups", "evaluation_id", "import_id")
"""The columns of `metric_values` that are not part of the key."""

Remember = Callable[[str, str, Callable[[], bytes]], bytes]
"""A cache of contents: a function of the name of a run, of a tag that changes whenever the content does, and of a
function that makes the content."""


def write_values(
    session: Session,
    evaluation: Evaluation,
    metrics: Sequence[Mapping[str, object]],
    protocols: Mapping[str, Mapping[str, object]],
) -> None:
    """Write an evaluation's metrics, in the form of `MetricValue.to_json`, into their series at the checkpoint's step.
    The values replace imported values, and values of evaluations with a lower id, whichever evaluation ends first."""
    write_protocols(session, protocols)
    if not metrics:
        return
    checkpoint = evaluation.checkpoint
    touch_history(session, checkpoint.run_id)
    rows = []
    for metric in map(Metric.model_validate, metrics):
        key = SeriesKey(checkpoint.run_id, metric.name, checkpoint.variant, metric.protocol)
        series = series_id(session, key, metric.unit, metric.direction, metric.baseline)
        stderr = None if isinstance(metric.stderr, str) else metric.stderr
        values = (*stored(metric.value), stderr, metric.low, metric.high, metric.n, metric.groups, evaluation.id, None)
        place = (series, checkpoint.step)
        rows.append(dict(zip(("series_id", "step", *VALUE_COLUMNS), (*place, *values), strict=True)))
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
    run_id: int
    metric: str
    variant: str
    protocol_id: str


def series_id(session: Session, key: SeriesKey, unit: str, direction: str, baseline: float | Word | None) -> int:
    """Return the id of a series, which is created if necessary, also by a concurrent writer."""
    if direction not in (known := get_args(Direction)):
        raise InvalidData(f"the direction of {key.metric} is {direction!r:.80}; give one of: {', '.join(known)}")
    query = select(Series.id).filter_by(**vars(key))
    identity = session.scalar(query)
    if identity is None:
        new = {**vars(key), "unit": unit, "direction": direction, "baseline": baseline}
        session.execute(insert(session, Series).values(new).on_conflict_do_nothing())
        identity = session.scalar(query)
        assert identity is not None
    return identity


def write_protocols(session: Session, protocols: Mapping[str, Mapping[str, object]]) -> None:
    """Store the contents of protocols by id. Existing protocols stay."""
    for protocol_id, content in protocols.items():
        new = {"id": protocol_id, "content": dict(content)}
        session.execute(insert(session, Protocol).values(new).on_conflict_do_nothing(index_elements=["id"]))


def stored(value: float | Word) -> tuple[float | None, int]:
    """Return the columns `value` and `kind` of `metric_values` for a number, or for the word of NaN or an infinity."""
    return (None, _KINDS[value]) if isinstance(value, str) else (value, FINITE)


def insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT of the database's dialect, which supports ON CONFLICT."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def touch_history(session: Session, run_id: int) -> None:
    """Increment the version of a run's history, before the first row of the history is written. The run's row is
    locked, so that two writers of a run wait for each other here, and cannot deadlock on the values."""
    newer = update(Run).where(Run.id == run_id).values(history_version=Run.history_version + 1)
    session.execute(newer.execution_options(synchronize_session=False))


def lock_history(session: Session, run_id: int) -> None:
    """Block other writers of a run's history until the transaction ends, without a new version of the history."""
    session.execute(select(Run.id).where(Run.id == run_id).with_for_update(key_share=True))


def history_tag(run: Run, program: str, question: object) -> str:
    """Return a tag that changes whenever this program's answer to a question about a run's history may change. Compute
    the tag before you read the history: a client may then ask once too often, but never keeps an old answer."""
    # SQLite may reuse the id of a deleted run, but the time of creation differs.
    begun = run.created_at.isoformat()
    return digest([program, run.id, begun, run.history_version, question])[:32]
