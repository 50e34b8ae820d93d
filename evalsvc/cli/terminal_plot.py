"""Charts of values along training, drawn with characters.

The lines are those of a chart's spec, so that terminal, browser and picture show the same numbers. Runs differ by their
marks, and in a terminal with colours by their colours, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from evalsvc.metrics.intervals import LEVEL
from evalsvc.spec.visible_text import visible_line

MARKS = "●■▲◆○□△◇"
"""Marks of runs, in their order."""

COLOURS = ("blue", "dark_orange3", "green", "magenta", "yellow", "cyan", "bright_black", "red")

GUIDE, RANGE, INTERVAL, LINE, NO_NUMBER, GAP = "┄", "┊", "│", "·", "?", "×"

HEIGHT = 16
"""Rows of the plot itself."""

NARROWEST, WIDEST = 40, 120
"""Columns of a plot, with its labels."""


@dataclass(frozen=True)
class Mark:
    """A value at a place of the axis."""

    x: float
    y: float | None
    """None for a value that is no finite number."""
    low: float | None
    """Lower end of the interval; None without an interval."""
    high: float | None
    least: float | None = None
    """Least of the values that one mark stands for; None if the mark stands for one value."""
    most: float | None = None
    shown: str = ""
    """The value in words."""
    word: str = ""
    """`NaN` and the like; empty for numbers."""
    stderr: float | None = None
    smooth: float | None = None
    """Smoothed value; None without smoothing."""


@dataclass(frozen=True)
class Line:
    """The values of a run."""

    label: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Plot:
    """What is drawn."""

    title: str
    x_title: str
    lines: Sequence[Line]
    guides: Mapping[float, str] = field(default_factory=dict)
    """Words for horizontal lines, by their value."""
    gaps: Sequence[float] = ()
    """Places that lack a value."""
    log: bool = False
    """Whether the values have a logarithmic scale."""
    log_x: bool = False
    """Whether the axis has a logarithmic scale, of x + 1: training begins at 0."""


def plot_of(spec: Mapping[str, Any], title: str, x_title: str, *, log: bool = False, log_x: bool = False) -> Plot:
    """Return the plot of a chart's spec; see `web.charts`."""
    by_label: dict[str, list[Mark]] = {}
    for row in spec["datasets"]["points"]:
        by_label.setdefault(str(row.get("run", "difference")), []).append(_mark(row))
    constants = [row for layer in spec["layer"] for row in layer.get("data", {}).get("values", ()) if "y" in row]
    horizontal = [*constants, *spec["datasets"].get("lines", ())]
    guides = {float(row["y"]): str(row.get("text", "")) for row in horizontal}
    gaps = [float(row["x"]) for row in spec["datasets"].get("gaps", ())]
    lines = [Line(label, marks) for label, marks in by_label.items()]
    units = (layer.get("encoding", {}).get("y", {}).get("title") for layer in spec["layer"])
    unit = next(filter(None, units), "")
    return Plot(f"{title} ({unit})" if unit else title, x_title, lines, guides, gaps, log, log_x)


def draw(plot: Plot, width: int) -> list[Text]:
    """Draw a plot into a number of columns. The lines of text are the title, the plot, its axis and its legend."""
    width = max(NARROWEST, min(WIDEST, width))
    y_axis = _Axis.of(_heights(plot), log=plot.log)
    labels = {HEIGHT - 1 - y_axis.place(value, HEIGHT): text for value, text in y_axis.ticks(5)}
    margin = max(map(len, labels.values()), default=0) + 2
    columns = width - margin
    x_axis = _Axis.of(
        [mark.x for line in plot.lines for mark in line.marks] + list(plot.gaps), log=plot.log_x, shift=1.0
    )
    cells = _Cells(columns, x_axis, y_axis)
    cells.draw(plot)
    rows = [Text(visible_line(plot.title), no_wrap=True)]
    for place, row in enumerate(cells.rows):
        label = labels.get(place)
        rows.append(Text(f"{label or '':>{margin - 2}} {'┤' if label else '│'}") + row)
    rows += _axis_lines(plot, x_axis, columns, margin)
    return rows + list(_legend(plot))


def _mark(row: Mapping[str, Any]) -> Mark:
    names = ("y", "low", "high", "least", "most", "smooth")
    values = {name: value if isinstance(value := row.get(name), int | float) else None for name in names}
    word = str(row.get("word") or "")
    number = values["y"] if values["y"] is not None else row.get("shown")
    shown = word or (f"{number:.6g}" if isinstance(number, int | float) else "")
    return Mark(x=float(row["x"]), shown=shown, word=word, stderr=row.get("stderr"), **values)


def _heights(plot: Plot) -> list[float]:
    """Return all values that the plot must have room for."""
    marks = [mark for line in plot.lines for mark in line.marks]
    values = [value for mark in marks for value in (mark.y, mark.low, mark.high, mark.least, mark.most)]
    return [value for value in [*values, *plot.guides] if value is not None and (value > 0 or not plot.log)]


@dataclass(frozen=True)
class _Axis:
    """A scale from values to cells."""

    low: float
    high: float
    log: bool
    shift: float = 0.0
    """Added to values before their logarithm is taken."""

    @classmethod
    def of(cls, values: Sequence[float], *, log: bool, shift: float = 0.0) -> _Axis:
        low, high = (min(values), max(values)) if values else (0.1, 1.0)
        if low == high:
            low, high = (
                (low / 2, high * 2) if log and not shift else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
            )
        return cls(low, high, log, shift)

    def share(self, value: float) -> float:
        """Return where a value is, from 0 at the lower end to 1 at the upper end."""
        if self.log:
            low, high = self.low + self.shift, self.high + self.shift
            return math.log((value + self.shift) / low) / math.log(high / low)
        # Halves, since the difference of two large numbers of opposite signs is infinite.
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def place(self, value: float, cells: int) -> int:
        """Return the cell of a value."""
        return min(cells - 1, max(0, round(self.share(value) * (cells - 1))))

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return round values on the axis with their labels."""
        if self.log:
            least = max(self.low, self.shift)
            decades = math.log10(self.high / least) if self.high > least else 0.0
            powers = range(math.floor(math.log10(least)), math.ceil(math.log10(max(self.high, least))) + 1)
            digits = (1, 2, 5) if decades < 2 else (1,)
            values = [0.0] * (self.low <= 0) + [digit * 10.0**power for power in powers for digit in digits]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) > 1:
                chosen = inside[:: math.ceil(len(inside) / (2 * count))]
                return [(value, _tick(value, 0) if self.shift else f"{value:g}") for value in chosen]
        rough = self.high / count - self.low / count
        if rough < sys.float_info.min:  # too small for a power of ten
            return [(value, f"{value:.6g}") for value in (self.low, self.high)]
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(number * step, _tick(number * step, decimals)) for number in range(first, last + 1)]


def _tick(value: float, decimals: int) -> str:
    """Return the label of a tick: of large numbers, thousands, millions and so on as a letter."""
    if decimals > 6 or abs(value) >= 1e15:
        return f"{value:.6g}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.6g}{letter}"
    return f"{value:,.{decimals}f}"


class _Cells:
    """The characters of the plot."""

    def __init__(self, columns: int, x_axis: _Axis, y_axis: _Axis) -> None:
        self._columns = columns
        self._x, self._y = x_axis, y_axis
        self._cells: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(HEIGHT)]

    @property
    def rows(self) -> Iterator[Text]:
        """The rows from top to bottom."""
        for row in self._cells:
            yield Text.assemble(*[(character, style) if style else character for character, style in row])

    def draw(self, plot: Plot) -> None:
        """Draw guides first and marks last, so that no mark is hidden by anything but a mark."""
        for guide in plot.guides:
            if guide > 0 or not plot.log:
                for column in range(self._columns):
                    self._put(column, self._row(guide), GUIDE, "dim")
        visible = [(line, COLOURS[i % len(COLOURS)]) for i, line in enumerate(plot.lines)]
        for line, style in visible:
            for mark in line.marks:
                self._bar(mark.x, mark.least, mark.most, RANGE, style, plot.log)
        for line, style in visible:
            for mark in line.marks:
                self._bar(mark.x, mark.low, mark.high, INTERVAL, style, plot.log)
        for number, (line, style) in enumerate(visible):
            self._connect([mark for mark in line.marks if self._has_place(_drawn(mark), plot.log)], style)
            for mark in line.marks:
                column = self._x.place(mark.x, self._columns)
                if self._has_place(mark.y, plot.log):
                    assert mark.y is not None
                    self._put(column, self._row(mark.y), MARKS[number % len(MARKS)], style)
                elif mark.word:
                    self._put(column, HEIGHT - 1, NO_NUMBER, style)

    def _has_place(self, value: float | None, log: bool) -> bool:
        return value is not None and (value > 0 or not log)

    def _row(self, value: float) -> int:
        return HEIGHT - 1 - self._y.place(value, HEIGHT)

    def _put(self, column: int, row: int, character: str, style: str) -> None:
        self._cells[row][column] = (character, style)

    def _bar(self, x: float, low: float | None, high: float | None, character: str, style: str, log: bool) -> None:
        if low is None or high is None or not self._has_place(low, log):
            return
        column = self._x.place(x, self._columns)
        for row in range(self._row(high), self._row(low) + 1):
            self._put(column, row, character, style)

    def _connect(self, marks: Sequence[Mark], style: str) -> None:
        """Draw dots between the marks, where nothing else is; with smoothing, between the smoothed values."""
        places = [(self._x.place(mark.x, self._columns), self._y.share(_drawn(mark) or 0.0)) for mark in marks]
        for (start, share_before), (end, share_after) in pairwise(places):
            for column in range(start + 1, end):
                share = share_before + (share_after - share_before) * (column - start) / (end - start)
                row = HEIGHT - 1 - round(share * (HEIGHT - 1))
                if self._cells[row][column][0] in (" ", GUIDE):
                    self._put(column, row, LINE, style)


def _drawn(mark: Mark) -> float | None:
    """Return the value that the line between marks goes through."""
    return mark.y if mark.smooth is None else mark.smooth


def _axis_lines(plot: Plot, axis: _Axis, columns: int, margin: int) -> list[Text]:
    """Return the axis with its ticks and gaps, the labels below, and the title of the axis."""
    line = ["─"] * columns
    labels = [" "] * (columns + margin)
    end = 0
    for value, text in axis.ticks(max(2, columns // 14)):
        place = axis.place(value, columns)
        line[place] = "┬"
        start = min(margin + place - len(text) // 2, len(labels) - len(text))
        if start >= end:
            labels[start : start + len(text)] = text
            end = start + len(text) + 1
    for gap in plot.gaps:
        line[axis.place(gap, columns)] = GAP
    title = " " * margin + plot.x_title.center(columns).rstrip()
    return [Text(" " * (margin - 1) + "└" + "".join(line)), Text("".join(labels).rstrip()), Text(title)]


def _legend(plot: Plot) -> Iterator[Text]:
    """Yield a line for each run with its newest value, then what the other characters mean."""
    labels = [visible_line(line.label) for line in plot.lines]
    wide = min(48, max(map(cell_len, labels), default=0))
    for number, (line, label) in enumerate(zip(plot.lines, labels, strict=True)):
        newest = max(line.marks, key=lambda mark: mark.x)
        error = "" if newest.stderr is None else f" ± {newest.stderr:.2g}"
        style = COLOURS[number % len(COLOURS)]
        padded = label + " " * (wide - cell_len(label))
        text = f" {padded}  {visible_line(newest.shown)}{error} at {newest.x:,.0f}"
        yield Text.assemble((MARKS[number % len(MARKS)], style), text)
    for character, meaning in _meanings(plot):
        yield Text(f"{character} {meaning}")


def _meanings(plot: Plot) -> Iterable[tuple[str, str]]:
    marks = [mark for line in plot.lines for mark in line.marks]
    if any(mark.low is not None for mark in marks):
        yield INTERVAL, f"interval of {LEVEL:.0%}, where it is higher than a mark"
    if any(mark.least is not None for mark in marks):
        yield RANGE, "range of several values; the mark is the last one of them"
    if any(mark.smooth is not None for mark in marks):
        yield LINE, "smoothed curve"
    for text in filter(None, plot.guides.values()):
        yield GUIDE, visible_line(text)
    if any(mark.word for mark in marks):
        yield NO_NUMBER, "a value that is no finite number"
    if plot.gaps:
        steps = "1 step" if len(plot.gaps) == 1 else f"{len(plot.gaps):,} steps"
        yield GAP, f"no value at {steps}; `evalsvc history` has the reasons"
