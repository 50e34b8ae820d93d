"""Charts in the terminal: plotext draws the specs of the browser's charts, see `web.charts`, with characters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from evalsvc.errors import InvalidRequest
from evalsvc.spec.visible_text import visible_line

STYLES = tuple(zip("●■▲◆○□△◇", (4, 208, 2, 5, 3, 6, 8, 1), strict=True))
"""Mark and colour of each run, in their order."""

BARS = (("┊", "least", "most"), ("│", "low", "high"))
"""Characters of the range of several values and of the interval, with the fields of their ends."""

HEIGHT = 20


def draw(
    spec: Mapping[str, Any], title: str, x_title: str, width: int, *, log: bool = False, log_x: bool = False
) -> list[Text]:
    """Return the plot as lines of text, and below it a line for each run with its newest value.

    Raises:
        InvalidRequest: the values are too large, or too far apart, for a plot.
    """
    import plotext  # of an extra

    points, lines, gaps = (spec["datasets"].get(name, []) for name in ("points", "lines", "gaps"))
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in points:
        runs.setdefault(row.get("run", "difference"), []).append(row)
    bottom = min((row[end] for row in points for end in ("y", "low", "least") if row.get(end) is not None), default=1.0)
    place = math.log1p if log_x else float  # log(1 + x), since training begins at 0

    def add(mark: str, colour: int, rows: list[dict[str, Any]], *fields: str, joined: bool = False) -> None:
        xs = [place(row["x"]) for row in rows for _ in fields]
        ys = [row.get(field, bottom) for row in rows for field in fields]
        (plotext.plot if joined else plotext.scatter)(xs, ys, marker=mark, color=colour)

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, HEIGHT)
    units = [layer["encoding"]["y"].get("title") for layer in spec["layer"] if "y" in layer.get("encoding", {})]
    plotext.title(visible_line(f"{title} ({unit})" if (unit := next(filter(None, units), "")) else title))
    plotext.xlabel(x_title)
    plotext.yscale("log" if log else "linear")
    if log_x:
        last = max(row["x"] for row in [*points, *gaps])
        ticks = [0, *(10**power for power in range(16) if 10**power <= last)]
        plotext.xticks([place(tick) for tick in ticks], [f"{tick:,}" for tick in ticks])
    for line in lines:
        plotext.hline(line["y"])
    for (_, colour), rows in zip(STYLES, runs.values(), strict=False):
        for bar, low, high in BARS:
            for row in rows:
                if row.get(low) is not None:
                    add(bar, colour, [row], low, high, joined=True)
        curve = "smooth" if any("smooth" in row for row in rows) else "y"
        add("·", colour, [row for row in rows if row.get(curve) is not None], curve, joined=True)
    legend = []
    for (mark, colour), (run, rows) in zip(STYLES, runs.items(), strict=False):
        add(mark, colour, [row for row in rows if row["y"] is not None], "y")
        add("?", colour, [row for row in rows if "word" in row], "no number")
        newest = max(rows, key=lambda row: row["x"])
        value = newest.get("word") or f"{newest.get('shown', newest['y']):.6g}"
        error = f" ± {newest['stderr']:.2g}" if "stderr" in newest else ""
        text = visible_line(f" {run}  {value}{error} at {newest['x']:,}")
        legend.append(Text.assemble((mark, f"color({colour})"), text))
    add("×", 8, gaps, "no value")
    legend += [Text(f"─ {visible_line(line['text'])}") for line in lines if "text" in line]
    if any("word" in row for row in points):
        legend.append(Text("? a value that is no finite number"))
    if gaps:
        legend.append(Text(f"× no value, at {len(gaps):,} steps; `evalsvc history` has the reasons"))
    try:
        drawn = plotext.build()
    except (OverflowError, ValueError):
        raise InvalidRequest("the values are too far apart to draw; narrow the steps by --from and --to") from None
    return [*Text.from_ansi(drawn).split(), *legend]
