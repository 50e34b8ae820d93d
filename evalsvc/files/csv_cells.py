"""Text cells of tables that spreadsheets open."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a formula in a spreadsheet; a formula may start programs and send neighbouring cells."""


def plain_cell(value: object) -> object:
    """Return the value as a safe cell: text that would be a formula gets an apostrophe; numbers stay."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value)
    return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
    """Return whether text is a number for a spreadsheet and pandas, including -Infinity."""
    try:
        float(text)
    except ValueError:
        return False
    return True
