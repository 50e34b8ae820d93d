"""Table 1: the step from which a benchmark is forgotten, and completions in a table."""

from __future__ import annotations

from typing import Any

from plain_curves import plain_curve
from table_1 import WIDTH, agrees, forgotten_from, one_line, shortened


def accuracies(chance: float, *shares: float, n: int = 300) -> Any:
    """Return the curve of an accuracy at the steps 0, 10, 20, …, each of `n` questions."""
    errors = [1.96 * (share * (1 - share) / (n - 1)) ** 0.5 for share in shares]
    rows = [
        (10 * place, share, share - error, share + error, n)
        for place, (share, error) in enumerate(zip(shares, errors, strict=True))
    ]
    return plain_curve("pretrained", "cloze/acc", "fraction", rows, baseline=chance)


def test_forgetting_begins_where_chance_stays_in_the_interval() -> None:
    assert forgotten_from(accuracies(0.25, 0.8, 0.28, 0.26)) == 10
    assert forgotten_from(accuracies(0.25, 0.8, 0.24, 0.5, 0.26)) == 30, "a step above chance in between"
    assert forgotten_from(accuracies(0.1, 0.8, 0.3, 0.26)) is None


def test_a_benchmark_that_was_never_known_shows_no_forgetting() -> None:
    assert agrees([0, 20]) == "yes"
    assert agrees([0, 20, None]) == "in part"
    assert agrees([0, None]) == "no"
    assert agrees([0, 0]) == "not measured"


def test_completions_cannot_break_a_table() -> None:
    assert one_line("a\nb|c`d\x1b[0m") == "a⏎b¦cˋd�[0m"
    assert one_line("") == " "


def test_repeated_tokens_are_counted() -> None:
    assert shortened("a‹image 7›‹image 7›‹image 7›‹/text›") == "a‹image 7› × 3 ‹/text›"
    assert shortened("x" * 500) == "x" * (WIDTH - 1) + "…"
