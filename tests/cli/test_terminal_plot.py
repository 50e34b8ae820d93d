"""Plots of characters: what stands where."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from evalsvc.cli.terminal_plot import HEIGHT, NARROWEST, WIDEST, Plot, draw, plot_of


def point(x: float, y: float | None, run: str = "a", **fields: Any) -> dict[str, Any]:
    return {"run": run, "x": x, "y": y, **({"word": "NaN"} if y is None else {}), **fields}


def plot(
    *points: dict[str, Any], log: bool = False, guides: tuple[float, ...] = (), gaps: tuple[int, ...] = ()
) -> Plot:
    layers: list[dict[str, Any]] = [{"data": {"values": [{}]}}, {"encoding": {"y": {"title": "nats"}}}]
    lines = [{"y": guide, "text": "chance"} for guide in guides]
    spec = {"datasets": {"points": points, "lines": lines, "gaps": [{"x": gap} for gap in gaps]}, "layer": layers}
    return plot_of(spec, "loss", "training step", log=log)


def lines(drawn: Plot, width: int = 80) -> list[str]:
    return [line.plain for line in draw(drawn, width)]


def rows(drawn: Plot) -> list[str]:
    """Return the rows of the plot itself, without labels."""
    return [re.split("[│┤]", line, maxsplit=1)[1] for line in lines(drawn)[1 : 1 + HEIGHT]]


def test_values_stand_at_their_places() -> None:
    shown = rows(plot(point(0, 1.0), point(50, 2.0), point(100, 3.0)))
    assert shown[0].rstrip().endswith("●")
    assert shown[-1].startswith("●")
    [middle] = [row for row in shown if row.strip("· ") == "●" and row not in (shown[0], shown[-1])]
    assert abs(shown.index(middle) - HEIGHT / 2) <= 1
    assert abs(middle.index("●") - len(shown[0]) / 2) <= 1


def test_title_and_legend_have_unit_and_newest_value() -> None:
    shown = lines(plot(point(0, 1.0), point(1000, 3.0, stderr=0.25), point(0, 2.0, "b")))
    assert shown[0] == "loss (nats)"
    assert "● a  3 ± 0.25 at 1,000" in shown
    assert "■ b  2 at 0" in shown


def test_an_interval_is_a_bar_from_low_to_high() -> None:
    shown = rows(plot(point(0, 0.0, low=-1.0, high=1.0), point(1, 0.0)))
    column = [row[0] for row in shown]
    assert (column[0], column[-1], column.count("│"), column.count("●")) == ("│", "│", HEIGHT - 1, 1)
    assert any("interval of 95%" in line for line in lines(plot(point(0, 0.0, low=-1.0, high=1.0))))


def test_several_values_of_a_mark_are_a_range() -> None:
    shown = rows(plot(point(0, 0.0, least=-1.0, most=1.0), point(1, 0.0)))
    assert [row[0] for row in shown].count("┊") == HEIGHT - 1


def test_values_that_are_no_numbers_are_marked_at_the_lower_edge() -> None:
    shown = plot(point(0, 1.0), point(1, None), point(2, 2.0))
    assert "?" in rows(shown)[-1]
    assert "? a value that is no finite number" in lines(shown)


def test_gaps_are_on_the_axis_and_counted() -> None:
    shown = lines(plot(point(0, 1.0), point(100, 2.0), gaps=(50, 100)))
    assert shown[1 + HEIGHT].count("×") == 2
    assert shown[-1] == "× no value at 2 steps; `evalsvc history` has the reasons"


def test_chance_is_a_line_behind_the_marks() -> None:
    shown = plot(point(0, 1.0), point(10, 2.0), guides=(1.0,))
    assert rows(shown)[-1].startswith("●")
    assert rows(shown)[-1].count("┄") > 50
    assert "┄ chance" in lines(shown)


def test_a_smoothed_curve_goes_between_the_points() -> None:
    shown = plot(point(0, 0.0, smooth=1.0), point(10, 2.0, smooth=1.0))
    middle = rows(shown)[HEIGHT // 2 - 1] + rows(shown)[HEIGHT // 2]
    assert middle.count("·") > 50
    assert "· smoothed curve" in lines(shown)


def test_on_a_logarithmic_scale_decades_are_apart_alike() -> None:
    shown = rows(plot(point(0, 0.001), point(1, 0.1), point(2, 10.0), log=True))
    place = [index for index, row in enumerate(shown) if "●" in row]
    assert place[1] - place[0] == pytest.approx(place[2] - place[1], abs=1)
    labels = [line.split()[0] for line in lines(plot(point(0, 0.001), point(1, 10.0), log=True)) if "┤" in line]
    assert labels == ["10", "1", "0.1", "0.01", "0.001"]


def test_on_a_logarithmic_axis_the_first_steps_are_apart() -> None:
    points = [point(x, float(place)) for place, x in enumerate((0, 9, 99, 999, 9999))]
    shown = plot_of({"datasets": {"points": points}, "layer": []}, "loss", "training step", log_x=True)
    columns = sorted(row.index("●") for row in rows(shown) if "●" in row)
    assert columns == pytest.approx([place * columns[-1] / 4 for place in range(5)], abs=1)
    assert lines(shown)[2 + HEIGHT].split() == ["0", "1", "10", "100", "1,000"]


def test_values_up_to_zero_have_no_place_on_a_logarithmic_scale() -> None:
    shown = plot(point(0, 0.0), point(1, -1.0, low=-2.0, high=1.0), point(2, 1.0), guides=(0.0,), log=True)
    assert sum(row.count("●") for row in rows(shown)) == 1


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0],
        [-3.0, -3.0],
        [1e308, -1e308],
        [5e-324, 1e-323],
        [1e15, 1e15 + 1],
        [0.1 + 0.2, 0.3],
        [1e-9, 2e-9],
        [123456789.0, 123456790.0],
        [2.0**53, 2.0**53 + 2],
    ],
)
def test_any_two_numbers_can_be_drawn(values: list[float]) -> None:
    shown = plot(*(point(x, y) for x, y in enumerate(values)))
    assert sum(row.count("●") for row in rows(shown)) == 2
    assert {len(row) for row in rows(shown)} == {len(rows(shown)[0])}


def test_one_value_can_be_drawn() -> None:
    assert sum(row.count("●") for row in rows(plot(point(0, 1.5)))) == 1


@pytest.mark.parametrize("width", [1, 40, 79, 80, 119, 500])
def test_lines_fit_the_terminal(width: int) -> None:
    points = [point(x * 1_000_000_000, math.sin(x), low=-2.0, high=2.0) for x in range(200)]
    drawn = draw(plot(*points, guides=(0.0,)), width)
    widest = max(line.cell_len for line in drawn[: HEIGHT + 4])
    assert widest == min(WIDEST, max(NARROWEST, width))


def test_labels_of_an_axis_do_not_touch() -> None:
    drawn = lines(plot(*(point(x, 1.0) for x in (0, 9_999_999)), gaps=()), 40)
    labels = drawn[2 + HEIGHT].split("  ")
    assert [label.strip() for label in labels if label.strip()] == ["0", "5M"]


def test_control_characters_of_names_are_written_out() -> None:
    shown = lines(plot(point(0, 1.0, "\x1b[31mred\n"), point(0, None, "b", word="\x1b]0;title\x07")))
    assert not any("\x1b" in line or "\n" in line for line in shown)
    assert any("\\x1b[31mred" in line for line in shown)


def test_runs_differ_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(plot(point(0, 1.0), point(1, 2.0, "b"), point(2, 3.0, "c")), 80)
    Console(force_terminal=True, no_color=True).print(Text("\n").join(drawn))
    printed = capsys.readouterr().out
    assert all(mark in printed for mark in "●■▲")
    Console(force_terminal=True, color_system="standard").print(Text("\n").join(drawn))
    assert "\x1b[" in capsys.readouterr().out
