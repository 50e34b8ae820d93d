"""Comparisons as tables: what is said beside the numbers."""

import math

import pytest
from gate_documents import result, value

from evalsvc.cli.contrast_tables import print_contrasts
from evalsvc.compare.contrast import compare_results


def test_a_comparison_says_whose_result_is_suspicious(capsys: pytest.CaptureFixture[str]) -> None:
    warning = {"code": "inputs_cut", "metric": "loss/total", "message": "9 sequences were cut"}
    print_contrasts({"a": "x@1", "b": "x@2", "level": 0.95, "contrasts": [], "warnings": {"a": [], "b": [warning]}})
    assert capsys.readouterr().err == "warning: B, loss/total: 9 sequences were cut\n"


def test_a_comparison_says_which_items_it_leaves_out_and_how_many_verdicts_are_chance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = {0: list(range(20)), 1: list(range(3, 21))}
    sides = []
    for name, indices in items.items():
        rows = [{"index": index, "x": math.sin(index + 9 * name)} for index in indices]
        metrics = [value("t/x", 0.0, 0.1, n=len(rows), items=("x",)), value("t/y", 0.0)]
        sides.append(result(*metrics, name=str(name), items={"t": rows}))
    print_contrasts(compare_results(*sides).to_json())
    shown = capsys.readouterr().out
    (first, second) = (line for line in shown.splitlines() if "t/x" in line or "t/y" in line)
    assert "3 only A has, 1 only B has" in first
    assert "only" not in second
    assert "2 metrics have a verdict at level 0.95, each by itself: if nothing had changed, about 0.1 would be" in shown
