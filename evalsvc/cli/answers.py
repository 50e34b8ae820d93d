"""Answers of the service, printed as a table, as CSV or as JSON, on standard output or into a file."""

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
    """Write the output of a block to the file of --output; without a file, to standard output.

    The file is written when the block ends. A block that raises an error leaves the file unchanged.

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
    """Return the size of a page of rows where `limit` rows are shown: `first_rows` reads one row more."""
    return min(limit + 1, MAX_PAGE)


def first_rows(rows: Iterable[D], limit: int) -> list[D]:
    """Return at most `limit` documents, and say on stderr if more documents exist."""
    first = list(islice(rows, limit + 1))
    if len(first) > limit:
        say(f"the first {limit:,} are shown; --limit shows more", err=True)
    return first[:limit]


def print_rows(
    rows: Sequence[Mapping[str, object]], form: Format, key: str, nothing: str, drop: Sequence[str] = ()
) -> None:
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
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        print_table(columns, cells, optional=columns, drop=drop)


def print_list(
    rows: Sequence[D], form: Format, key: str, cells: Callable[[D], Mapping[str, str]], nothing: str
) -> None:
    """Print documents of one type.

    `cells` returns the cells of a row of the table by column. CSV has every field. JSON has the list below `key`, as in
    the answer of the service. The table says `nothing` if no documents exist.
    """
    if form == "table":
        print_rows([cells(row) for row in rows], form, key, nothing)
    else:
        print_rows([content_of(row) for row in rows], form, key, nothing)


def print_one(document: D, form: Format, table: Callable[[D], None] = print_document) -> None:
    """Print a document: as text by `table`, as one row of CSV, or as the JSON that the service answered."""
    if form == "json":
        say_json(content_of(document))
    elif form == "csv":
        write_rows([flat(content_of(document))])
    else:
        table(document)


def flat(content: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a document for a row of CSV, with lists and objects written as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for key, value in content.items()
    }


def moment(when: str | None) -> str:
    """Return a time of the service for a table, to the minute, in UTC: `2026-02-03 10:11`."""
    return "" if when is None else when[:16].replace("T", " ")
