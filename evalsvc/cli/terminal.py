"""Output of the command line: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from evalsvc.cli.table_layout import lay_out
from evalsvc.cli.wording import in_options
from evalsvc.files.csv_cells import csv_text
from evalsvc.spec.visible_text import visible, visible_line

PIPE = 120
"""Width of a table in a pipe or a file in characters."""


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    optional: Collection[str] = (),
    drop: Sequence[str] = (),
    below: Sequence[str] = (),
) -> None:
    """Print a table, with control characters escaped.

    A column in `optional` is left out if all its cells are empty. Lines wrap at the width of the terminal, or at PIPE.
    If that is not enough, the columns in `below` become lines below their rows. The columns in `drop` are left out in
    this order until the others fit, and a line below the table names the missing columns; in a pipe, they too become
    lines below their rows. No name is cut.
    """
    shown = [place for place, name in enumerate(columns) if name not in optional or any(row[place] for row in rows)]
    head = [visible_line(columns[place]) for place in shown]
    body = [[visible_line(row[place]) for place in shown] for row in rows]
    width = terminal_width()
    table = lay_out(head, body, width, drop, below) if width else lay_out(head, body, PIPE, (), (*below, *drop))
    print()
    Console().print(Text("\n").join(table.lines), soft_wrap=True)
    if table.dropped:
        print(f"(no room for: {', '.join(table.dropped)})")
    print(flush=True)


def print_lines(lines: Sequence[Text]) -> None:
    """Print lines of text, with their colours where stdout is a terminal. Control characters must be written out."""
    Console().print(Text("\n").join(lines), soft_wrap=True)
    print(end="", flush=True)


def terminal_width() -> int | None:
    """Return the width of the terminal on stdout in characters; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV, with the columns of the first row."""
    if rows:
        names = list(rows[0])
        lines: list[list[object]] = [[*names], *([row.get(name) for name in names] for row in rows)]
        cells = [[visible(cell) if isinstance(cell, str) else cell for cell in line] for line in lines]
        print(csv_text(cells), end="")


def say(text: str = "", *, err: bool = False, style: str = "") -> None:
    """Print a text immediately, with control characters escaped. Tables and bars are printed by other functions.

    `style` is a colour for terminals, such as `red`.
    """
    if style:
        # As `Text`, brackets are no markup.
        Console(stderr=err).print(Text(visible(text), style), soft_wrap=True)
        return
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_json(document: object) -> None:
    """Print a document as JSON. `json.dumps` escapes every control character except DEL."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"), flush=True)


def complain(message: str) -> None:
    """Print an error on stderr, with its first word in red if stderr is a terminal.

    Fields and routes in a message of the service are replaced by options and commands.
    """
    _say_labelled("error:", "bold red", in_options(message))


def warn(message: str) -> None:
    """Print a warning on stderr, with its first word in yellow if stderr is a terminal."""
    _say_labelled("warning:", "bold yellow", message)


def _say_labelled(label: str, style: str, message: str) -> None:
    # As `Text`, brackets in a message are no markup.
    Console(stderr=True).print(Text.assemble((label, style), f" {visible(message)}"), soft_wrap=True)


def one_line(text: str) -> str:
    """Return a text as one line, with `⏎` for line breaks."""
    return visible_line(text.replace("\n", "⏎"))
