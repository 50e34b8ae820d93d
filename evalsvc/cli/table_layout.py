"""Lay out a table for the width of a terminal: lines wrap, columns drop, and no name is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import gt

from rich.cells import cell_len, chop_cells
from rich.text import Text

GAP = 2
"""Spaces between two columns; 1 if only that makes the table fit."""

WHOLE = 20
"""Least width of cells with spaces before a column is dropped, so that `-0.21 … +0.33` stays on one line."""

INDENT = "    "
"""Spaces before a sentence below its row."""

STYLES: Mapping[str, str] = {
    **dict.fromkeys(("worse", "missing", "other protocol", "not judged", "failed", "wrong", "corrupt"), "red"),
    **dict.fromkeys(("partly failed", "not tried", "different", "cancelled", "not measured"), "yellow"),
    **dict.fromkeys(("better", "ok", "succeeded"), "green"),
}
"""Colours of cells by their word, in upper or lower case, with or without a remark in parentheses."""

_REMARK = re.compile(r" \(.*\)$")
_BREAKS = re.compile(r"(?<=[/_,:;=@])|(?<=[.-])(?!\d)")
"""Places where a name that is wider than the terminal may break: never within a number."""
_SPACES = re.compile(r"(?<!±) (?!…)")
"""Spaces where a cell may wrap: not after `±`, and not before `…`."""

Grid = Sequence[Sequence[str]]
"""Rows of cells, with the header first."""


@dataclass(frozen=True)
class Layout:
    """A table as lines of text, and the columns that do not fit the terminal."""

    lines: list[Text]
    dropped: list[str]


def lay_out(
    columns: Sequence[str],
    rows: Grid,
    width: int,
    drop: Sequence[str] = (),
    below: Sequence[str] = (),
) -> Layout:
    """Lay out a table.

    If the table is wider than `width`, sentences wrap first. Then the columns in `below` become lines below their rows,
    and the columns in `drop` are left out in this order until the others fit. Then every cell wraps at its spaces, and
    names that are still too wide break at `/`, `_` and similar characters.
    """
    grid = [columns, *rows]
    under: list[str] = []
    dropped: list[str] = []
    for name in [None, *below, *drop]:
        if name is not None and name in columns and len(under) + len(dropped) + 1 < len(columns):
            (under if name in below else dropped).append(name)
        shown = _without(grid, [*under, *dropped])
        if (fitted := _fitted(shown, width)) is not None:
            break
    widths, gap = fitted or (_narrowed(shown, width - len(shown[0]) + 1), 1)
    notes = {number: _notes(columns, row, under, width) for number, row in enumerate(rows)}
    return Layout(_lines(shown, widths, gap, notes), dropped)


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` cells, at spaces if possible, without losing characters."""
    lines = [""]
    for word in _SPACES.split(text):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
            continue
        pieces = _broken(word, width)
        lines = [*lines, *pieces] if lines[-1] else [*lines[:-1], *pieces]
    return lines


def style_of(cell: str) -> str:
    """Return the colour of a cell; empty for most."""
    return STYLES.get(_REMARK.sub("", cell).lower().replace("_", " "), "")


def _without(grid: Grid, names: Sequence[str]) -> Grid:
    kept = [place for place, name in enumerate(grid[0]) if name not in names]
    return [[row[place] for place in kept] for row in grid]


def _fitted(grid: Grid, width: int) -> tuple[list[int], int] | None:
    """Return the widths with which only sentences wrap, and the gap; None if these widths do not fit."""
    natural = _natural(grid)
    least = [
        max(_longest_word(head), *(max(_longest_word(cell), min(WHOLE, cell_len(cell))) for cell in cells), 0)
        for head, *cells in zip(*grid, strict=True)
    ]
    for gap in (GAP, 1):
        room = width - gap * (len(least) - 1)
        if sum(least) <= room:
            return _shared(natural, least, room), gap
    return None


def _narrowed(grid: Grid, room: int) -> list[int]:
    """Return the widths of columns that do not fit: cells wrap at spaces, then names break at `/` and the like."""
    words = [max(map(_longest_word, cells)) for cells in zip(*grid, strict=True)]
    if sum(words) <= room:
        return _shared(_natural(grid), words, room)
    pieces = [max(map(_longest_piece, cells)) for cells in zip(*grid, strict=True)]
    # Names break before words do: `captions/` and `text` are legible, `indistinguishab` and `le` are not.
    for least in (pieces, [1] * len(words)):
        while sum(words) > room and any(map(gt, words, least)):
            _, widest = max((width, place) for place, width in enumerate(words) if width > least[place])
            words[widest] -= 1
    return words


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return widths between `least` and `natural` that share the room: narrow columns get their natural width first."""
    widths = list(least)
    order = sorted(range(len(widths)), key=natural.__getitem__)
    for rank, place in enumerate(order):
        others = sum(least[later] for later in order[rank + 1 :])
        taken = sum(widths[before] for before in order[:rank])
        share = (room - taken) // (len(order) - rank)
        widths[place] = max(least[place], min(natural[place], share, room - taken - others))
    return widths


def _natural(grid: Grid) -> list[int]:
    return [max(map(cell_len, cells)) for cells in zip(*grid, strict=True)]


def _longest_word(cell: str) -> int:
    return max(map(cell_len, _SPACES.split(cell)))


def _longest_piece(cell: str) -> int:
    """Return the width of the longest part of a cell that has no space and no place where a name may break."""
    return max(cell_len(piece) for word in _SPACES.split(cell) for piece in _BREAKS.split(word))


def _notes(columns: Sequence[str], row: Sequence[str], under: Sequence[str], width: int) -> list[str]:
    """Return the lines below a row: the name and text of each column in `under` whose cell is not empty."""
    remarks = [f"{name}: {text}" for name, text in zip(columns, row, strict=True) if name in under and text]
    return [f"{INDENT}{line}" for text in remarks for line in wrapped(text, max(width - len(INDENT), 1))]


def _lines(grid: Grid, widths: Sequence[int], gap: int, notes: Mapping[int, Sequence[str]]) -> list[Text]:
    head, *rows = grid
    rule = Text("─" * (sum(widths) + gap * (len(widths) - 1)), style="dim")
    lines = [*_row(head, widths, gap, "bold"), rule]
    for number, row in enumerate(rows):
        lines += _row(row, widths, gap)
        lines += map(Text, notes.get(number, ()))
    return lines


def _row(cells: Sequence[str], widths: Sequence[int], gap: int, style: str = "") -> Iterator[Text]:
    parts = [
        [cell] if cell_len(cell) <= width else wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)
    ]
    styles = [style or style_of(cell) for cell in cells]
    for number in range(max(map(len, parts))):
        line = Text()
        for part, width, colour in zip(parts, widths, styles, strict=True):
            text = part[number] if number < len(part) else ""
            line.append(text, colour)
            line.append(" " * (width - cell_len(text) + gap))
        line.rstrip()
        yield line


def _broken(word: str, width: int) -> list[str]:
    """Break a word that is too wide after `/`, `_` and the like, or else anywhere."""
    lines = [""]
    for piece in _BREAKS.split(word):
        if cell_len(lines[-1] + piece) <= width:
            lines[-1] += piece
            continue
        pieces = chop_cells(piece, width) or [""]
        lines = [*(lines if lines[-1] else lines[:-1]), *pieces]
    return lines
