"""Output of the command line: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import typer
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from evalsvc.cli.wording import in_options
from evalsvc.errors import InvalidRequest
from evalsvc.files.csv_cells import csv_text
from evalsvc.log import log_line
from evalsvc.spec.visible_text import visible, visible_line

PIPE, SCREEN = 120, 40
"""Characters of a line and lines of a screen, for a pipe or a file."""

AROUND = 9
"""Lines of a screen that are left for the text around a table."""

WHOLE = 20
"""Widest cell that stays on one line, so that `-0.21 … +0.33` is not broken."""

INDENT = "    "

STYLES: Mapping[str, str] = {
    **dict.fromkeys(("worse", "missing", "other protocol", "not judged", "failed", "wrong", "corrupt"), "red"),
    **dict.fromkeys(("partly failed", "not tried", "different", "cancelled", "not measured", "≠"), "yellow"),
    **dict.fromkeys(("better", "ok", "succeeded"), "green"),
}
"""Colours of cells by their word, in upper or lower case, with or without a mark or a remark in parentheses."""

_REMARK = re.compile(r"^[▲▼≠] | \(.*\)$")
_BREAKS = re.compile(r"(?<=[/_,:;=@])|(?<=[.-])(?!\d)")
_SPACES = re.compile(r"(?<!±) (?!…)")


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    optional: Collection[str] = (),
    drop: Sequence[str] = (),
    below: Sequence[str] = (),
    width: int | None = None,
) -> None:
    """Print a table as `table_lines` makes it, between empty lines."""
    print()
    print_lines(table_lines(columns, rows, optional, drop, below, width))
    print(flush=True)


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    optional: Collection[str] = (),
    drop: Sequence[str] = (),
    below: Sequence[str] = (),
    width: int | None = None,
    above: Mapping[int, str] | None = None,
) -> list[Text]:
    """Return the lines of a table, with control characters escaped.

    A column in `optional` is left out if all its cells are empty. Lines wrap at `width`, or else at the width of the
    terminal. If that is not enough, the columns in `below` become lines below their rows. The columns in `drop` are
    left out in this order until the others fit, and a line below the table names the missing columns. In a pipe, lines
    wrap at PIPE, and without a `width` the columns in `drop` become lines below their rows, too. No name is cut. The
    lines in `above` head blocks of rows; their keys are the first rows of the blocks.
    """
    places = [place for place, name in enumerate(columns) if name not in optional or any(row[place] for row in rows)]
    grid = [[visible_line(row[place]) for place in places] for row in (columns, *rows)]
    width = width or terminal_width()
    if width is None:
        width, drop, below = PIPE, (), (*below, *drop)
    head = grid[0]
    left_out: list[str] = []
    for name in [None, *below, *drop]:
        if name in head and len(left_out) + 1 < len(head):
            left_out.append(str(name))
        kept = [place for place, name in enumerate(head) if name not in left_out]
        cells = [[row[place] for place in kept] for row in grid]
        if (fitted := _fitted(cells, width)) is not None:
            break
    widths, gap = fitted or (_narrowed(cells, width - len(kept) + 1), 1)
    lines = [*_row(cells[0], widths, gap, "bold"), Text("─" * (sum(widths) + gap * (len(widths) - 1)), style="dim")]
    for place, (row, shown) in enumerate(zip(grid[1:], cells[1:], strict=True)):
        if above and place in above:
            lines += [Text(line, style="bold") for line in wrapped(visible_line(above[place]), width)]
        lines += _row(shown, widths, gap)
        for name, text in zip(head, row, strict=True):
            if text and name in left_out and name in below:
                lines += [Text(INDENT + line) for line in wrapped(f"{name}: {text}", width - len(INDENT))]
    dropped = ", ".join(name for name in left_out if name not in below)
    return [*lines, Text(f"(no room for: {dropped})")] if dropped else lines


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` cells: at spaces, in long names after `/`, `_` and the like."""
    lines = [""]
    for word in _SPACES.split(text):
        fits = cell_len(word) <= width
        pieces = [word] if fits else [part for name in _BREAKS.split(word) for part in chop_cells(name, width)]
        for place, piece in enumerate(pieces):
            gap = " " if lines[-1] and not place else ""
            if cell_len(lines[-1] + gap + piece) <= width:
                lines[-1] += gap + piece
            else:
                lines.append(piece)
    return lines


def style_of(cell: str) -> str:
    return STYLES.get(_REMARK.sub("", cell).lower().replace("_", " "), "")


def _fitted(grid: Sequence[Sequence[str]], width: int) -> tuple[list[int], int] | None:
    natural = [max(map(cell_len, cells)) for cells in zip(*grid, strict=True)]
    least = [
        max(_longest_word(head), *(max(_longest_word(cell), min(WHOLE, cell_len(cell))) for cell in cells), 0)
        for head, *cells in zip(*grid, strict=True)
    ]
    for gap in (2, 1):
        room = width - gap * (len(least) - 1)
        if sum(least) <= room:
            return _shared(natural, least, room), gap
    return None


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return widths between `least` and `natural` that share the room: narrow columns get their natural width first."""
    widths = list(least)
    order = sorted(range(len(widths)), key=natural.__getitem__)
    for rank, place in enumerate(order):
        others = sum(widths) - widths[place]
        share = (room - sum(widths[before] for before in order[:rank])) // (len(order) - rank)
        widths[place] = max(least[place], min(natural[place], share, room - others))
    return widths


def _narrowed(grid: Sequence[Sequence[str]], room: int) -> list[int]:
    widths = [max(map(_longest_word, cells)) for cells in zip(*grid, strict=True)]
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def _longest_word(cell: str) -> int:
    return max(map(cell_len, _SPACES.split(cell)))


def _row(cells: Sequence[str], widths: Sequence[int], gap: int, style: str = "") -> Iterator[Text]:
    parts = [
        [cell] if cell_len(cell) <= width else wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, parts))):
        line = Text()
        for cell, part, width in zip(cells, parts, widths, strict=True):
            text = part[number] if number < len(part) else ""
            line.append(text, style or style_of(cell))
            line.append(" " * (width - cell_len(text) + gap))
        line.rstrip()
        yield line


def print_lines(lines: Sequence[Text]) -> None:
    """Print lines of text, with their colours where stdout is a terminal. Control characters must be written out."""
    Console().print(Text("\n").join(lines), soft_wrap=True)
    print(end="", flush=True)


def terminal_width() -> int | None:
    """Return the width of the terminal on stdout in characters; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def screen_room() -> int:
    """Return the lines of a screen without those AROUND a table; a pipe or a file has SCREEN lines."""
    return (shutil.get_terminal_size().lines if sys.stdout.isatty() else SCREEN) - AROUND


def fitting(count: int, height: Callable[[int], int]) -> int:
    """Return how many things fit the screen, at least one; `height` returns the lines of so many."""
    room = screen_room()
    while count > 1 and (lines := height(count)) > room:
        count = max(1, min(count - 1, count * room // lines))
    return count


def write_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV, with the columns of the first row."""
    if rows:
        names = list(rows[0])
        lines: list[list[object]] = [[*names], *([row.get(name) for name in names] for row in rows)]
        cells = [[visible(cell) if isinstance(cell, str) else cell for cell in line] for line in lines]
        print(csv_text(cells), end="")


def say(text: str = "", *, err: bool = False, style: str = "") -> None:
    """Print a text immediately, with control characters escaped. `style` is a colour for terminals, such as `red`."""
    if style:  # as `Text`, whose brackets are no markup
        Console(stderr=err).print(Text(visible(text), style), soft_wrap=True)
    else:
        print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_json(document: object) -> None:
    """Print a document as JSON. `json.dumps` escapes every control character except DEL."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"), flush=True)


def announce(text: str) -> None:
    """Print what a service does, as a line of its log if the log is JSON."""
    say(log_line(text) or text)


def complain(message: str) -> None:
    """Print an error on stderr, with options and commands in place of a service's fields and routes."""
    if (line := log_line(in_options(message), logging.ERROR)) is not None:
        say(line, err=True)
    else:
        warn(in_options(message), ("error:", "bold red"))


def warn(message: str, label: tuple[str, str] = ("warning:", "bold yellow")) -> None:
    """Print a warning on stderr, below a label and its colour."""
    Console(stderr=True).print(Text.assemble(label, f" {visible(message)}"), soft_wrap=True)


def one_line(text: str) -> str:
    """Return a text as one line, with `⏎` for line breaks."""
    return visible_line(text.replace("\n", "⏎"))


def confirm(what: str, yes: bool, name: str = "") -> None:
    """Ask for confirmation of `what`, unless `yes` is set; before a deletion, the user has to type `name`."""
    if yes:
        return
    would = f"{what} would be deleted" if name else f"the command would {what}"
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{would}, and standard input is no terminal to ask for confirmation; give --yes")
    if not name:
        if not typer.confirm(f"{what}?", err=True):
            raise typer.Exit(1)
    elif (typed := typer.prompt(f"{would} irrevocably; type {name} to confirm", err=True)) != name:
        raise InvalidRequest(
            f"{typed!r} was typed instead of {name!r}, so nothing was deleted; run the command again to delete"
        )
