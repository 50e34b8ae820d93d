"""Import of values that other programs measured: all or none, and only with `replace` in place of other values."""

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
from evalsvc.metrics.definitions import range_of
from evalsvc.metrics.ratio import Ratio
from evalsvc.metrics.value_interval import ends_of, value_interval
from evalsvc.spec.documents.fields import Word
from evalsvc.spec.documents.history import ImportOutcome
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.reading import number_or_word, read_table
from evalsvc.store.history.writing import (
    VALUE_COLUMNS,
    SeriesKey,
    insert,
    lock_history,
    series_id,
    stored,
    touch_history,
    write_protocols,
)
from evalsvc.store.lookup import get_or_create_run
from evalsvc.store.tables import Import, MetricValue, Series

NAMED = 3
"""The most conflicting values that an error message names."""


@dataclass(frozen=True)
class Imported:
    """The values of a series in columns of equal length. Steps may have any order, but must not repeat."""

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
"""A value, its standard error and its number of items."""


@dataclass
class _Changes:
    """The changes that an import makes to the series with this id, by step."""

    series: int
    given: Imported
    new: dict[int, Entry] = field(default_factory=dict)
    changed: dict[int, Entry] = field(default_factory=dict)
    unchanged: int = 0


def import_values(session: Session, run: str, source: str, given: Sequence[Imported], replace: bool) -> ImportOutcome:
    """Import the values of several series of a run, which is new if necessary. A repeated import changes nothing."""
    row = get_or_create_run(session, run)
    lock_history(session, row.id)
    write_protocols(session, {item.protocol.id: item.protocol.content for item in given})
    changes = []
    for item in given:
        key = SeriesKey(row.id, item.metric, item.variant, item.protocol.id)
        series = session.get_one(Series, series_id(session, key, item.unit, item.direction, item.baseline))
        for name in ("unit", "direction"):
            if (known := getattr(series, name)) != (sent := getattr(item, name)):
                raise Conflict(
                    f"{item.metric} of run {run!r} has the {name} {known!r} under this protocol, not {sent!r}; "
                    f"send the run's {name}, or another protocol"
                )
        changes.append(_compare(session, series.id, item))
    new, replaced = sum(len(item.new) for item in changes), sum(len(item.changed) for item in changes)
    if replaced and not replace:
        raise Conflict(_describe(session, run, given, changes, replaced))
    identity = _write(session, row.id, source, changes) if new or replaced else None
    unchanged = sum(item.unchanged for item in changes)
    return ImportOutcome(run=run, import_=identity, series=len(given), new=new, replaced=replaced, unchanged=unchanged)


def _compare(session: Session, series: int, item: Imported) -> _Changes:
    entries: dict[int, Entry] = dict(zip(item.step, zip(item.value, item.stderr, item.n, strict=True), strict=True))
    stored_entries = _entries(session, series, min(item.step), max(item.step))
    changes = _Changes(series, item)
    for step, entry in entries.items():
        if step not in stored_entries:
            changes.new[step] = entry
        elif stored_entries[step] == entry:
            changes.unchanged += 1
        else:
            changes.changed[step] = entry
    return changes


def _entries(session: Session, series: int, first: int, last: int) -> dict[int, Entry]:
    query = select(MetricValue.step, MetricValue.value, MetricValue.kind, MetricValue.stderr, MetricValue.n)
    query = query.where(MetricValue.series_id == series, MetricValue.step.between(first, last))
    table = read_table(session, query)
    return dict(zip(table["step"], zip(table["value"], table["stderr"], table["n"], strict=True), strict=True))


def _write(session: Session, run_id: int, source: str, changes: Sequence[_Changes]) -> int:
    touch_history(session, run_id)
    record = Import(run_id=run_id, source=source, values=sum(len(item.new) + len(item.changed) for item in changes))
    session.add(record)
    session.flush()
    new = [row for item in changes for row in _rows(item, item.new, record.id)]
    changed = [row for item in changes for row in _rows(item, item.changed, record.id)]
    if new:
        # Without ON CONFLICT, so that a value of a concurrent writer is never overwritten.
        connection = session.connection()
        driver: Any = connection.dialect.dbapi
        try:
            if connection.dialect.name == "postgresql":
                # COPY is two to three times as fast as a statement for each row, and blocks other writers for less time
                names = ", ".join(new[0])
                with connection.connection.cursor().copy(f"COPY metric_values ({names}) FROM STDIN") as copy:
                    for row in new:
                        copy.write_row(tuple(row.values()))
            else:
                connection.execute(plain_insert(MetricValue), new)
        except (IntegrityError, driver.IntegrityError):
            raise Conflict("another request wrote some of these values concurrently; send the import again") from None
    if changed:
        statement = insert(session, MetricValue)
        update = {name: statement.excluded[name] for name in VALUE_COLUMNS}
        session.connection().execute(
            statement.on_conflict_do_update(index_elements=["series_id", "step"], set_=update), changed
        )
    return record.id


def _rows(changes: _Changes, entries: Mapping[int, Entry], identity: int) -> list[dict[str, object]]:
    names, unit = ("series_id", "step", *VALUE_COLUMNS), changes.given.unit
    of = range_of(None, changes.given.metric.partition("/")[2], unit)
    return [
        dict(zip(names, (changes.series, step, *stored(value), stderr, *ends, n, None, None, identity), strict=True))
        for step, (value, stderr, n) in entries.items()
        for ends in [ends_of(value_interval(Ratio(float(value), stderr, n or 0), unit, of))]
    ]


def _describe(session: Session, run: str, given: Sequence[Imported], changes: Sequence[_Changes], number: int) -> str:
    named = [
        (item, change.series, step)
        for item, change in zip(given, changes, strict=True)
        for step in islice(sorted(change.changed), NAMED)
    ][:NAMED]
    lines = []
    for item, series, step in named:
        row = session.get_one(MetricValue, (series, step))
        origin = "imported" if row.evaluation_id is None else f"measured by evaluation {row.evaluation_id}"
        sent = item.value[list(item.step).index(step)]
        lines.append(f"{item.metric} at step {step} is {number_or_word(row.value, row.kind)}, {origin}, and not {sent}")
    more = f" and {number - len(lines):,} more" if number > len(lines) else ""
    return (
        f"{number:,} of the values differ from the values of run {run!r}: {'; '.join(lines)}{more}; nothing was "
        "imported; leave these values out, or send replace=true"
    )
