"""Documents of the service, printed as a table, as CSV or as JSON, on standard output or into a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from evalsvc.cli.options import Format, require_folders, write_output
from evalsvc.cli.terminal import print_table, say, say_json, write_rows
from evalsvc.cli.wording import duration
from evalsvc.client import MAX_PAGE
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import json_name
from evalsvc.spec.names import checkpoint_name
from evalsvc.spec.protocol import labelled

D = TypeVar("D", bound=Document)
Row = Mapping[str, object]

CELLS: Mapping[str, Callable[[Any], object]] = {
    "checkpoint": lambda row: checkpoint_name(row.run, row.step, row.variant),
    "suite": lambda row: row.suite if isinstance(row.suite, str) else row.suite.name,
    "error": lambda row: row.error and row.error.code,
    "took": lambda row: took(row.started_at, row.finished_at),
    "metric": lambda row: labelled(row.metric, row.differs),
    "latest": lambda row: row.latest and row.latest.value,
    "latest at": lambda row: row.latest and row.latest.step,
    "best": lambda row: row.best and row.best.value,
    "best at": lambda row: row.best and row.best.step,
    "best of": lambda row: row.best and f"{row.best.of:,} steps",
}
"""Columns that a table makes of several fields of a document, or of a part of one field."""

PLACES = ("id", "step", "last_step", "evaluation", "first", "last", "latest at", "best at")
"""Columns of whole numbers that are names of things and have no commas."""


@contextmanager
def printed_to(output: Path | None) -> Iterator[None]:
    """Write the output of a block to the file of --output; without a file, to standard output.

    The file is written when the block ends. A block that raises an error leaves the file unchanged.
    """
    if output is None:
        yield
        return
    require_folders({"--output": output})
    with redirect_stdout(io.StringIO()) as printed:
        yield
    write_output("--output", output, printed.getvalue())
    say(f"wrote {output}", err=True)


def page_size(limit: int) -> int:
    """Return the size of a page of rows where `limit` rows are shown: `first_rows` reads one row more."""
    return min(limit + 1, MAX_PAGE)


def first_rows(rows: Iterable[D], limit: int) -> list[D]:
    """Return at most `limit` documents, and say on stderr if more documents exist."""
    first = list(islice(rows, limit + 1))
    if len(first) > limit:
        say(f"the first {limit:,} are shown; --limit shows more", err=True)
    return first[:limit]


def print_rows(rows: Sequence[Row], form: Format, key: str, nothing: str, drop: Sequence[str] = ()) -> None:
    """Print rows that all have the same columns.

    JSON has the rows below `key`. The table says `nothing` if no rows exist. A narrow terminal shows the table without
    the columns in `drop`, which are left out in this order.
    """
    if form == "json":
        say_json({key: list(rows)})
    elif form == "csv":
        write_rows([flat(row) for row in rows])
    elif not rows:
        say(nothing)
    else:
        columns = list(rows[0])
        print_table(columns, [[cell(*field) for field in row.items()] for row in rows], optional=columns, drop=drop)


def print_list(documents: Sequence[D], columns: Sequence[str], form: Format, key: str, nothing: str) -> None:
    """Print documents of one type.

    A table has the columns, which are fields or CELLS. CSV and JSON have every field. JSON has the list below `key`, as
    in the answer of the service. The table says `nothing` if no documents exist.
    """
    if form != "table":
        print_rows([document.model_dump() for document in documents], form, key, nothing)
    elif not documents:
        say(nothing)
    else:
        cells = [
            [cell(name, CELLS[name](row) if name in CELLS else getattr(row, name)) for name in columns]
            for row in documents
        ]
        print_table([_title(name) for name in columns], cells, optional=[_title(name) for name in columns])


def show(
    document: D, form: Format, text: Callable[[D], None] | None = None, rows: Callable[[D], Sequence[Row]] | None = None
) -> None:
    """Print a document: as `text`, as the JSON that the service answered, or as the `rows` of CSV.

    The text has a line for each field, and the rows are one, unless a function makes others.
    """
    if form == "json":
        say_json(document.model_dump())
    elif form == "csv":
        write_rows([flat(document.model_dump())] if rows is None else rows(document))
    else:
        (text or print_fields)(document)


def print_fields(document: Document) -> None:
    """Print the fields of a document in their order, then its lists of documents as tables."""
    tables: dict[str, list[Document]] = {}
    for name, value in fields_of(document).items():
        if isinstance(value, list) and value and isinstance(value[0], Document):
            tables[name] = value
        else:
            say(f"{name}: {cell(name, value)}".rstrip())
    for name, rows in tables.items():
        say(f"{name}:")
        columns = [_title(field) for field in fields_of(rows[0])]
        print_table(columns, [[cell(*field) for field in fields_of(row).items()] for row in rows], optional=columns)


def fields_of(document: Document) -> dict[str, Any]:
    """Return the values of a document by the names of its fields in JSON."""
    return {json_name(name): value for name, value in vars(document).items()}


def cell(name: str, value: object) -> str:
    """Return the text of a field for people: times to the minute, numbers with commas, nothing for nothing."""
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if name in PLACES else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Document):
        return ", ".join(f"{key} {text}" for key, field in fields_of(value).items() if (text := cell(key, field)))
    if name == "evaluations" and isinstance(value, list):
        return ", ".join(f"{item.suite} {item.state}" for item in value)
    if isinstance(value, list):
        return ("; " if isinstance(value[0], Document) else ", ").join(cell(name, item) for item in value)
    if isinstance(value, dict):
        plain = {key: item.model_dump() if isinstance(item, Document) else item for key, item in value.items()}
        return json.dumps(plain, ensure_ascii=False)
    return moment(str(value)) if name.endswith("_at") else str(value)


def flat(content: Row) -> dict[str, object]:
    """Return the fields of a document for a row of CSV, with lists and objects written as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for key, value in content.items()
    }


def moment(when: str) -> str:
    """Return a time of the service for people, to the minute, in UTC: `2026-02-03 10:11`."""
    return when[:16].replace("T", " ")


def took(started: str | None, finished: str | None) -> str:
    """Return how long an evaluation took; empty if it has not ended."""
    if started is None or finished is None:
        return ""
    return duration((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())


def print_suite_tasks(tasks: Sequence[Row]) -> None:
    """Print the tasks of a suite with all their parameters."""
    for task in tasks:
        say(f"task {task.get('name')}, kind {task.get('kind')}:")
        for key, value in task.items():
            if key not in ("name", "kind"):
                say(f"  {key}: {json.dumps(value, ensure_ascii=False)}")


def _title(name: str) -> str:
    return json_name(name).removesuffix("_at").replace("_", " ")
