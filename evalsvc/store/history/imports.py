"""Values that were measured elsewhere: entered all or none, never in the place of others unless that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import insert as plain_insert
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from evalsvc.errors import Conflict
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import ImportOutcome
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.reading import number_or_word, read_columns
from evalsvc.store.history.values import VALUE_COLUMNS, SeriesKey, insert, series_id, stored, write_protocols
from evalsvc.store.history.version import lock_history, touch_history
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.tables import Import, MetricValue, Series

NAMED = 3
"""How many of the values that stand in the way are named."""


@dataclass(frozen=True)
class Imported:
    """The values of one series. Columns of equal length; the steps may come in any order, each once."""

    metric: str
    unit: str
    direction: str
    protocol: Protocol
    step: Sequence[int]
    value: Sequence[float | Word]
    stderr: Sequence[float | None]
    n: Sequence[int | None]
    variant: str = "raw"
    baseline: float | None = None


Entry = tuple[float | Word, float | None, int | None]
"""Value, standard error and n."""


@dataclass
class _Found:
    """The values of a series that are to be entered, and what stands in their way."""

    series: int
    new: dict[int, Entry] = field(default_factory=dict)
    changed: dict[int, Entry] = field(default_factory=dict)
    unchanged: int = 0


def import_values(session: Session, run: str, source: str, given: Sequence[Imported], replace: bool) -> ImportOutcome:
    """Enter the values of several series of a run, which begins here where there is none. The same again does nothing.

    Raises:
        Conflict: a step has another value already, measured or imported, and `replace` is not set; the series has
            another unit or direction; or another writer was at the same series at the same moment.
    """
    row = get_or_create_run(session, run)
    lock_history(session, row.id)
    write_protocols(session, {item.protocol.id: item.protocol.content for item in given})
    found = []
    for item in given:
        key = SeriesKey(row.id, item.metric, item.variant, item.protocol.id)
        series = session.get_one(Series, series_id(session, key, item.unit, item.direction, item.baseline))
        _require_alike(run, series, item)
        found.append(_compare(session, series.id, item))
    new, replaced = sum(len(item.new) for item in found), sum(len(item.changed) for item in found)
    if replaced and not replace:
        raise Conflict(_describe(session, run, given, found, replaced))
    identity = _write(session, row.id, source, found) if new or replaced else None
    unchanged = sum(item.unchanged for item in found)
    return ImportOutcome(run=run, import_=identity, series=len(given), new=new, replaced=replaced, unchanged=unchanged)


def _require_alike(run: str, series: Series, item: Imported) -> None:
    for name in ("unit", "direction"):
        if getattr(series, name) != getattr(item, name):
            raise Conflict(
                f"{item.metric} of run {run!r} has the {name} {getattr(series, name)!r} under this protocol, not "
                f"{getattr(item, name)!r}; send it as the run has it, or under another protocol"
            )


def _compare(session: Session, series: int, item: Imported) -> _Found:
    entries: dict[int, Entry] = dict(zip(item.step, zip(item.value, item.stderr, item.n, strict=True), strict=True))
    there = _entries(session, series, min(item.step), max(item.step))
    if not there:
        return _Found(series, new=entries)
    found = _Found(series)
    for step, entry in entries.items():
        if step not in there:
            found.new[step] = entry
        elif there[step] == entry:
            found.unchanged += 1
        else:
            found.changed[step] = entry
    return found


def _entries(session: Session, series: int, first: int, last: int) -> dict[int, Entry]:
    """What a series has, by step."""
    query = select(MetricValue.step, MetricValue.value, MetricValue.kind, MetricValue.stderr, MetricValue.n)
    query = query.where(MetricValue.series_id == series, MetricValue.step.between(first, last))
    rows = zip(*read_columns(session, query), strict=True)
    return {step: (number_or_word(value, kind), stderr, n) for step, value, kind, stderr, n in rows}


def _write(session: Session, run_id: int, source: str, found: Sequence[_Found]) -> int:
    """Enter new values and replace those that changed; returns the id of the import."""
    touch_history(session, run_id)
    entered = Import(run_id=run_id, source=source, values=sum(len(item.new) + len(item.changed) for item in found))
    session.add(entered)
    session.flush()
    new = [row for item in found for row in _rows(item.series, item.new, entered.id)]
    changed = [row for item in found for row in _rows(item.series, item.changed, entered.id)]
    if new:
        _insert_new(session, new)
    if changed:
        statement = insert(session, MetricValue)
        update = {name: statement.excluded[name] for name in VALUE_COLUMNS}
        session.connection().execute(
            statement.on_conflict_do_update(index_elements=["series_id", "step"], set_=update), changed
        )
    return entered.id


def _insert_new(session: Session, rows: Sequence[dict[str, object]]) -> None:
    """By a plain INSERT: a value that has come between must stop the import, and not be overwritten."""
    connection = session.connection()
    driver: Any = connection.dialect.dbapi
    try:
        if connection.dialect.name == "postgresql":
            # Two to three times as fast as a statement a row, during which no other request may write.
            with connection.connection.cursor().copy(f"COPY metric_values ({', '.join(rows[0])}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(tuple(row.values()))
        else:
            connection.execute(plain_insert(MetricValue), rows)
    except (IntegrityError, driver.IntegrityError):
        raise Conflict("another writer entered some of these values at the same moment; send them again") from None


def _rows(series: int, entries: Mapping[int, Entry], identity: int) -> list[dict[str, object]]:
    names = ("series_id", "step", "value", "kind", "stderr", "n", "groups", "evaluation_id", "import_id")
    return [
        dict(zip(names, (series, step, *stored(value), stderr, n, None, None, identity), strict=True))
        for step, (value, stderr, n) in entries.items()
    ]


def _describe(session: Session, run: str, given: Sequence[Imported], found: Sequence[_Found], number: int) -> str:
    """Which values stand in the way."""
    named = [
        (item, places.series, step)
        for item, places in zip(given, found, strict=True)
        for step in islice(sorted(places.changed), NAMED)
    ][:NAMED]
    lines = []
    for item, series, step in named:
        there = session.get_one(MetricValue, (series, step))
        origin = "imported" if there.evaluation_id is None else f"measured by evaluation {there.evaluation_id}"
        sent = item.value[list(item.step).index(step)]
        lines.append(
            f"{item.metric} at step {step} is {number_or_word(there.value, there.kind)}, {origin}, and not {sent}"
        )
    more = f" and {number - len(lines):,} more" if number > len(lines) else ""
    return (
        f"run {run!r} has other values for {number:,} of these: {'; '.join(lines)}{more}; nothing was entered; leave "
        "them out, or send replace=true"
    )
