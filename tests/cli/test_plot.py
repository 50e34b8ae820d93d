"""`evalsvc plot`: a metric in the terminal and as a file, and what of a chart's spec stands where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, metric, submission, suite
from rich.console import Console
from rich.text import Text

from evalsvc.cli import plot
from evalsvc.cli.plot import draw
from evalsvc.errors import InvalidRequest
from evalsvc.web import vega


@pytest.fixture
def measured(service: Any) -> None:
    for run, offset in (("run-a", 0.0), ("run-b", 1.0)):
        for step, value in ((0, 5.0), (1000, 3.0), (2000, float("nan")), (3000, 2.5)):
            enter(service.store, submission(step, run=run, uri=f"/{run}/{step}.pt"), suite("loss"))
            evaluate_whole(service.store, metric(value + offset), metric(1.25, "loss/image", stderr=None))


def test_a_pipe_gets_80_columns_without_colours(evalsvc: Shell, measured: None) -> None:
    done = evalsvc("plot run-a run-b --metric loss/text")
    lines = done.out.splitlines()
    assert (done.code, "\x1b" in done.out, lines[0].strip()) == (0, False, "loss/text (nats/token)")
    assert max(map(len, lines)) <= 80
    legend = ("● run-a  2.5 ± 0.1 at 3,000", "■ run-b  3.5 ± 0.1 at 3,000", "? a value that is no finite number")
    assert set(legend) <= set(lines)
    assert "is the interval of each value at the level 95 %" in done.err


def test_the_first_of_the_headline_and_a_difference_are_drawn(evalsvc: Shell, measured: None) -> None:
    first = evalsvc("plot run-a").out.split()[0]
    assert first in evalsvc("history run-a --last 1").out
    done = evalsvc("plot run-b --metric loss/text --against run-a")
    assert done.out.strip().startswith("loss/text: run-b − run-a (")
    assert "difference  1 at 3,000" in done.out


@pytest.mark.parametrize(("package", "output"), [("vl-convert-python", "--output plot.svg"), ("plotext", "")])
def test_without_its_package_a_plot_is_refused(
    evalsvc: Shell, monkeypatch: pytest.MonkeyPatch, package: str, output: str
) -> None:
    for module in (vega, plot):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    done = evalsvc(f"plot run-a {output}")
    assert (done.code, done.out, Path("plot.svg").exists()) == (2, "", False)
    assert f"needs the package '{package}'; run: pip install" in done.err
    assert "[dashboard]" in done.err


def test_a_file_has_the_chart(evalsvc: Shell, measured: None, child_process: None) -> None:
    for name, head in (("plot.svg", b"<svg"), ("PLOT.PNG", b"\x89PNG\r\n"), ("plot.pdf", b"%PDF")):
        done = evalsvc(f"plot run-a run-b --metric loss/text --theme dark --output {name}")
        content = Path(name).read_bytes()
        assert (done.code, done.out, content.startswith(head)) == (0, f"{name}: {len(content):,} bytes\n", True)
    assert all(
        text in Path("plot.svg").read_bytes() for text in (b"run-b", b"Text loss (loss/text)", b"protocol", b"#0d1117")
    )


def point(x: float, y: float | None, run: str = "a", **fields: Any) -> dict[str, Any]:
    return {"run": run, "x": x, "y": y, **({"word": "NaN"} if y is None else {}), **fields}


def drawn(
    *points: dict[str, Any], chance: float | None = None, gaps: tuple[int, ...] = (), width: int = 80, **scales: bool
) -> list[Text]:
    lines = [] if chance is None else [{"y": chance, "text": "chance"}]
    datasets = {"points": points, "lines": lines, "gaps": [{"x": gap} for gap in gaps]}
    spec = {"datasets": datasets, "layer": [{"encoding": {"y": {"title": "nats"}}}]}
    return draw(spec, "loss", "training step", width, **scales)


def lines(*points: dict[str, Any], **options: Any) -> list[str]:
    return [line.plain.rstrip() for line in drawn(*points, **options)]


def rows(*points: dict[str, Any], **options: Any) -> list[str]:
    inner = [re.fullmatch(r" *[-0-9.e]*[│┤├](.*)[│┤]", line) for line in lines(*points, **options)]
    return [match[1] for match in inner if match]


def test_values_stand_at_their_places_with_unit_and_newest_value() -> None:
    shown = rows(point(0, 1.0), point(50, 2.0), point(100, 3.0))
    assert (shown[0].endswith("●"), shown[-1].startswith("●")) == (True, True)
    [middle] = [row for row in shown[1:-1] if "●" in row]
    assert abs(shown.index(middle) - len(shown) / 2) <= 1
    assert abs(middle.index("●") - len(middle) / 2) <= 1
    shown = lines(point(0, 1.0), point(1000, 3.0, stderr=0.25), point(0, 2.0, "b"))
    assert (shown[0].strip(), *shown[-2:]) == ("loss (nats)", "● a  3 ± 0.25 at 1,000", "■ b  2 at 0")


@pytest.mark.parametrize(("ends", "bar"), [(("low", "high"), "│"), (("least", "most"), "┊")])
def test_an_interval_and_a_range_are_bars(ends: tuple[str, str], bar: str) -> None:
    shown = rows(point(0, 0.0, **dict(zip(ends, (-1.0, 1.0), strict=True))), point(1, 0.0))
    column = [row[0] for row in shown]
    assert (column[0], column[-1], column.count("●")) == (bar, bar, 1)
    assert column.count(bar) == len(shown) - 1


def test_gaps_chance_and_smoothed_curves() -> None:
    """What has no number is at the lower edge; chance is a line behind the marks."""
    shown = lines(point(0, 1.0), point(1, None), point(2, 2.0), gaps=(1,))
    assert "? a value that is no finite number" in shown
    assert "× no value, at 1 steps; `evalsvc history` has the reasons" in shown
    assert "?" in rows(point(0, 1.0), point(1, None), point(2, 2.0))[-1]
    assert "×" in rows(point(0, 1.0), point(2, 2.0), gaps=(1,))[-1]
    shown = lines(point(0, 1.0), point(10, 2.0), chance=1.5)
    assert any(line.count("─") > 50 for line in shown[3:10])
    assert "─ chance" in shown
    shown = rows(point(0, 0.0, smooth=1.0), point(10, 2.0, smooth=1.0))
    assert shown[len(shown) // 2].count("·") > 50


def test_logarithmic_scales_set_decades_and_first_steps_apart() -> None:
    shown = rows(point(0, 0.001), point(1, 0.1), point(2, 10.0), log=True)
    place = [index for index, row in enumerate(shown) if "●" in row]
    assert place[1] - place[0] == pytest.approx(place[2] - place[1], abs=1)
    points = [point(x, float(place)) for place, x in enumerate((0, 9, 99, 999, 9999))]
    columns = sorted(row.index("●") for row in rows(*points, log_x=True) if "●" in row)
    assert columns == pytest.approx([place * columns[-1] / 4 for place in range(5)], abs=1)
    assert any(line.split() == ["0", "1", "10", "100", "1,000"] for line in lines(*points, log_x=True))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[3.0], [0.3, 0.1 + 0.2], [1e-9, 2e-9], [1e15, 1e15 + 1], [2.0**53, 2.0**53 + 2]])
def test_any_numbers_can_be_drawn_that_a_scale_holds(values: list[float], log: bool) -> None:
    shown = rows(*(point(x, y) for x, y in enumerate(values)), log=log)
    assert sum(row.count("●") for row in shown) == len(values)
    assert len({len(row) for row in shown}) == 1
    with pytest.raises(InvalidRequest, match="too far apart"):
        drawn(point(0, 1e308), point(1, -1e308))


@pytest.mark.parametrize("width", [40, 79, 120])
def test_lines_fit_the_terminal(width: int) -> None:
    points = [point(x * 1_000_000_000, x % 7.0, low=-2.0, high=9.0) for x in range(200)]
    assert max(line.cell_len for line in drawn(*points, chance=0.0, width=width)) == width


def test_control_characters_of_names_are_written_out() -> None:
    shown = lines(point(0, 1.0, "\x1b[31mred\n"), point(0, None, "b", word="\x1b]0;title\x07"))
    assert not any("\x1b" in line or "\n" in line for line in shown)
    assert any("\\x1b[31mred" in line for line in shown)


def test_runs_differ_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Text("\n").join(drawn(point(0, 1.0), point(1, 2.0, "b"), point(2, 3.0, "c")))
    Console(force_terminal=True, no_color=True).print(shown)
    printed = capsys.readouterr().out
    assert "\x1b[3" not in printed
    assert all(printed.count(mark) == 2 for mark in "●■▲")
    Console(force_terminal=True, color_system="256").print(shown)
    assert "\x1b[3" in capsys.readouterr().out
