"""CSV that spreadsheets open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a formula in a spreadsheet; a formula may start programs and send neighbouring cells."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows of safe cells as CSV with lines that end by "\\n"."""
    text = io.StringIO(newline="")
    write = csv.writer(text, lineterminator="\n").writerow
    write_quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow
    for row in rows:
        cells = [plain_cell(cell) for cell in row]
        # Python's writer leaves "\r" without quotes, and readers begin a row there.
        splits = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (write_quoted if splits else write)(cells)
    return text.getvalue()


def plain_cell(value: object) -> object:
    """Return the value as a safe cell: text that would be a formula gets an apostrophe; numbers and -Infinity stay."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
