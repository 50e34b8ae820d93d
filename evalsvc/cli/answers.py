"""How answers of the service are printed: as a table, as CSV or as JSON, on standard output or into a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import TypeVar

from evalsvc.cli.document_text import print_document
from evalsvc.cli.options import Format, require_folders, write_output
from evalsvc.cli.terminal import print_table, say, say_json, write_rows
from evalsvc.client import MAX_PAGE
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.reading import content_of

D = TypeVar("D", bound=Document)


@contextmanager
def printed_to(output: Path | None) -> Iterator[None]:
    """Write to the file of --output what is printed inside; without a file, print.

    The file is written when the block ends. A block that raises leaves the file as it was.

    Raises:
        InvalidRequest: the file cannot be written.
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
    """Return how many rows to ask the service for at once, where `limit` are shown: `first_rows` takes one more."""
    return min(limit + 1, MAX_PAGE)


def first_rows(rows: Iterable[D], limit: int) -> list[D]:
    """Return at most `limit` documents, with a line on stderr if there are more."""
    found = list(islice(rows, limit + 1))
    if len(found) > limit:
        say(f"the first {limit:,} are shown; --limit shows more", err=True)
    return found[:limit]


def print_rows(
    rows: Sequence[Mapping[str, object]], form: Format, key: str, nothing: str, drop: Sequence[str] = ()
) -> None:
    """Print rows that all have the same columns.

    JSON has the rows below `key`; `nothing` is the table without rows; `drop` are the columns that a narrow terminal
    goes without, in this order.
    """
    if form == "json":
        say_json({key: list(rows)})
    elif form == "csv":
        write_rows([flat(row) for row in rows])
    elif not rows:
        say(nothing)
    else:
        columns = list(rows[0])
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        print_table(columns, cells, optional=columns, drop=drop)


def print_list(
    rows: Sequence[D], form: Format, key: str, cells: Callable[[D], Mapping[str, str]], nothing: str
) -> None:
    """Print documents of one type.

    `cells` are the columns of the table by name; CSV has all fields. As JSON, the list is below `key`, as in the
    answer of the service. `nothing` is what the table says where there are no documents.
    """
    if form == "table":
        print_rows([cells(row) for row in rows], form, key, nothing)
    else:
        print_rows([content_of(row) for row in rows], form, key, nothing)


def print_one(document: D, form: Format, table: Callable[[D], None] = print_document) -> None:
    """Print a document: as text by `table`; as CSV, its fields in one row; as JSON, as the service answered."""
    if form == "json":
        say_json(content_of(document))
    elif form == "csv":
        write_rows([flat(content_of(document))])
    else:
        table(document)


def flat(content: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a document for a row of CSV: lists and objects as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for key, value in content.items()
    }


def moment(when: str | None) -> str:
    """Return a time of the service for a table, to the minute, in UTC: `2026-02-03 10:11`."""
    return "" if when is None else when[:16].replace("T", " ")
