"""Tables that are wider than the terminal: what wraps, what goes, and that no name is cut."""

import pytest
from rich.cells import cell_len

from evalsvc.cli.table_layout import lay_out, style_of, wrapped

COLUMNS = ["metric", "protocol", "step", "value", "error", "n", "why"]
NAMES = ["pairs/image", "pairs/general_text_gap_within", "coco/fid (sampling.guidance_scale=3.0)", "図/画像の損失"]
WHY = "worse by 0.0213, beyond the tolerance 0.0018 and the noise 0.012"
ROWS = [[name, "9a3f0c1d2e4b5a69", "3000", "1.76012", "± 0.0021", "360 in 60", WHY] for name in NAMES]
DROP = ("protocol", "n", "error")


def plain(width: int, drop: tuple[str, ...] = DROP) -> list[str]:
    return [line.plain for line in lay_out(COLUMNS, ROWS, width, drop).lines]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_a_table_fits_its_terminal_and_loses_no_name(width: int) -> None:
    lines = plain(width)
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    words = set("".join(f"{line} " for line in lines).split())
    assert {"3000", "1.76012"} <= words
    if width >= 80:
        assert {word for name in NAMES for word in name.split()} <= words


def test_columns_go_in_their_order_and_only_where_they_must() -> None:
    dropped = [lay_out(COLUMNS, ROWS, width, DROP).dropped for width in (200, 130, 110, 60)]
    assert dropped[0] == []
    assert dropped[-1] == list(DROP)
    assert all(found == list(DROP[: len(found)]) for found in dropped)
    assert [len(found) for found in dropped] == sorted(len(found) for found in dropped)


@pytest.mark.parametrize("text", ["", " a", "two words", "a/very_long.name@with-signs:and=more,of;them", "図" * 9, WHY])
@pytest.mark.parametrize("width", [3, 10, 80])
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert max(map(cell_len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_names_break_before_words_and_numbers_do() -> None:
    """`indistinguishab` and `le` were two lines at 80 columns."""
    row = ["indistinguishable", "captions/image_within", "0.000628188", "0.000784557", "-0.0001564", "-0.948 … +0.266"]
    for width in (80, 60):
        lines = [line.plain for line in lay_out(["B is", "metric", "A", "B", "B − A", "interval"], [row], width).lines]
        assert max(map(cell_len, lines)) <= width
        assert {"indistinguishable"} <= set(" ".join(lines).split()) or width < 80
        assert [word for word in " ".join(lines).split() if word == "-"] == []
    assert wrapped("-0.07557", 7) == ["-0.0755", "7"]


def test_a_name_that_is_too_wide_breaks_behind_its_signs() -> None:
    assert wrapped("pairs/general_text_gap", 10) == ["pairs/", "general_", "text_gap"]


@pytest.mark.parametrize(
    ("cell", "style"),
    [("WORSE", "red"), ("worse (forced)", "red"), ("not_judged", "red"), ("better", "green"), ("a worse one", "")],
)
def test_words_in_colour(cell: str, style: str) -> None:
    assert style_of(cell) == style


def test_a_table_without_rows_has_its_head() -> None:
    assert [line.plain for line in lay_out(["a", "b"], [], 20).lines] == ["a  b", "────"]
