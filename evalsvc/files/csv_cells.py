"""Text in tables that spreadsheets open."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula, which may start programs and send what lies beside it."""


def plain_cell(value: object) -> object:
    """The value as it may stand in a table: text that would be a formula begins with an apostrophe; numbers stay."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value)
    return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
    """Whether text is a number, -Infinity among them, as a spreadsheet and pandas read it."""
    try:
        float(text)
    except ValueError:
        return False
    return True
