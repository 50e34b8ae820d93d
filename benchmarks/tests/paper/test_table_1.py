"""Table 1: completions in a table."""

from __future__ import annotations

from table_1 import WIDTH, one_line, shortened


def test_completions_cannot_break_a_table() -> None:
    assert one_line("a\nb|c`d\x1b[0m") == "a⏎b¦cˋd�[0m"
    assert one_line("") == " "


def test_repeated_tokens_are_counted() -> None:
    assert shortened("a‹image 7›‹image 7›‹image 7›‹/text›") == "a‹image 7› × 3 ‹/text›"
    assert shortened("x" * 500) == "x" * (WIDTH - 1) + "…"
