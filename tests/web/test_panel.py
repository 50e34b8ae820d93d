"""Panels: their tables as files, and the lines that get the same numbers by other ways."""

import ast
import csv
import io
import shlex

import pytest

from evalsvc.errors import UnknownName
from evalsvc.web.panel import PANELS, Commands, Table, panel_class
from evalsvc.web.panels.curve import CurveQuery


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_is_found_by_its_name(name: str) -> None:
    assert panel_class(name).name == name


def test_an_unknown_panel_is_named_with_what_is_near() -> None:
    with pytest.raises(UnknownName, match="no panel is named 'curves'; did you mean 'curve'"):
        panel_class("curves")


def test_a_table_reads_as_the_same_cells() -> None:
    rows = [["a, b", 1, 0.1, None], ['"quoted"\nline', -2, -5e-324, "nan"], ["größe 🐈 \u202e", 2**63, 1e308, ""]]
    text = Table(["text", "whole", "real", "other"], rows).to_csv()
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [
        ["" if cell is None else str(cell) for cell in row] for row in rows
    ]


@pytest.mark.parametrize("formula", ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\uff1d1"])
def test_a_formula_is_text_for_a_spreadsheet(formula: str) -> None:
    """A run's name or an error that begins like one would be computed by whoever opens the file."""
    [_, [cell]] = csv.reader(io.StringIO(Table(["x"], [[formula]]).to_csv(), newline=""))
    assert cell == f"'{formula}"


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_no_text_begins_a_row(end: str) -> None:
    """After a lone "\\r" in an error's message the rest was a row of its own, and a formula."""
    text = f"out of memory{end}=HYPERLINK(1)"
    assert list(csv.reader(io.StringIO(Table(["x"], [[text]]).to_csv(), newline=""))) == [["x"], [text]]


def test_negative_numbers_stay_numbers() -> None:
    assert Table(["x"], [[-1.5], ["-Infinity"], [-3]]).to_csv() == "x\n-1.5\n-Infinity\n-3\n"


@pytest.mark.parametrize("name", ["a b", "a'; touch x; '", "$(touch x)", "`x`", "a\nb", '"', "ü🐈"])
def test_a_copied_line_runs_nothing_but_itself(name: str) -> None:
    lines = Commands(f"evalsvc history {shlex.quote(name)}", f"/v1/runs/{name}/metrics").shown(
        "http://host:1", f"/panels/curve.csv?run={name}"
    )
    address = f"http://host:1/v1/runs/{name}/metrics"
    assert shlex.split(lines["command line"]) == ["evalsvc", "history", name]
    assert shlex.split(lines["curl"]) == ["curl", "-s", address]
    literals = [node.value for node in ast.walk(ast.parse(lines["pandas"])) if isinstance(node, ast.Constant)]
    assert literals == [f"http://host:1/panels/curve.csv?run={name}"]


def test_a_panel_has_an_address_in_each_format() -> None:
    plain, dark = (CurveQuery(run=("a",), metric="loss", theme=theme) for theme in ("light", "dark"))
    assert plain.address("csv") == dark.address("csv", "light") == "/panels/curve.csv?run=a&metric=loss"
    assert (
        plain.address("svg", "dark") == dark.address("svg", "dark") == "/panels/curve.svg?run=a&metric=loss&theme=dark"
    )
