"""What the command line prints: results on stdout, all else on stderr."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evalsvc.cli.wording import in_options
from evalsvc.files.csv_cells import plain_cell
from evalsvc.spec.visible_text import visible, visible_line


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], optional: Collection[str] = ()) -> None:
    """Print a table, with what others wrote in it shown and not obeyed.

    A column whose name is in `optional` is left out where no row has anything in that column.
    """
    shown = [place for place, name in enumerate(columns) if name not in optional or any(row[place] for row in rows)]
    table = Table(box=box.SIMPLE)
    # As `Text`, brackets in names are no markup.
    for place in shown:
        table.add_column(Text(visible_line(columns[place])))
    for row in rows:
        table.add_row(*(Text(visible_line(row[place])) for place in shown))
    # A pipe has no width: what reads it wants whole lines.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def write_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV, under the names of the first one's columns."""
    if rows:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(_csv_cell, rows[0]))
        writer.writerows([_csv_cell(row.get(name)) for name in rows[0]] for row in rows)


def _csv_cell(value: object) -> object:
    return plain_cell(visible(value) if isinstance(value, str) else value)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a text at once, with what others wrote in it shown and not obeyed: all output but tables and bars."""
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_json(document: object) -> None:
    """Print a document as JSON, which escapes all control characters but one."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"), flush=True)


def complain(message: str) -> None:
    """Print an error on stderr, with options and commands in place of the fields and routes of a service's message."""
    say(f"error: {in_options(message)}", err=True)


def warn(message: str) -> None:
    say(f"warning: {message}", err=True)


def one_line(text: str) -> str:
    """Return the text with its line breaks shown."""
    return visible_line(text.replace("\n", "⏎"))
