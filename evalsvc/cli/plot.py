"""`evalsvc plot`: a metric along training, in the terminal or as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer import Argument, Option

from evalsvc.cli.options import (
    FirstStep,
    LastStep,
    Url,
    complete_metric,
    complete_run,
    connect,
    require_folders,
    writing,
)
from evalsvc.cli.terminal import print_lines, say, terminal_width
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.files.atomic import write_whole
from evalsvc.installation import missing_package
from evalsvc.spec.documents.history import Axis
from evalsvc.spec.visible_text import visible_line
from evalsvc.web import vega
from evalsvc.web.charts import AXIS_TITLES, Along, Scale
from evalsvc.web.panel import MOST_RUNS
from evalsvc.web.panels.curve import CurveQuery
from evalsvc.web.panels.differences import DifferenceQuery

commands = typer.Typer()

NARROWEST, IN_PIPES, WIDEST = 40, 80, 120
"""Columns of a plot: the least, those where no terminal says how wide it is, and the most."""

STYLES = tuple(zip("●■▲◆○□△◇", (4, 208, 2, 5, 3, 6, 8, 1), strict=True))
"""Mark and colour of each run, in their order."""

BARS = (("┊", "least", "most"), ("│", "low", "high"))
"""Characters of the range of several values and of the interval, with the fields of their ends."""

HEIGHT = 20

KINDS = (".svg", ".png", ".pdf")


@commands.command()
def plot(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="The training run, or up to eight.", autocompletion=complete_run)
    ],
    metric: Annotated[
        str | None,
        Option(help="<task>/<metric>.", show_default="first of the headline", autocompletion=complete_metric),
    ] = None,
    against: Annotated[
        str | None, Option(help="A run: draw the difference from it.", show_default="no", autocompletion=complete_run)
    ] = None,
    output: Annotated[Path | None, Option(help="File, .svg, .png or .pdf.", show_default="the terminal")] = None,
    x: Annotated[Axis, Option("--x", help="Along training steps or tokens.")] = "step",
    scale: Annotated[Scale, Option(help="Scale of the values.")] = "linear",
    along: Annotated[Along, Option(help="Scale of the axis.")] = "auto",
    smooth: Annotated[
        float, Option("--smooth", min=0, max=0.99, help="Weight of neighbouring values in a smoothed curve.")
    ] = 0.0,
    variant: Annotated[str | None, Option(help="Only these weights.", show_default="all")] = None,
    first: FirstStep = None,
    last: LastStep = None,
    theme: Annotated[vega.Theme | None, Option(help="Colours of the file.", show_default="light")] = None,
    url: Url = None,
) -> None:
    """Draw a metric of one or several runs along training, with intervals, chance and gaps.

    Without --output the plot is made of characters, for a terminal. A file has the chart that the dashboard shows. Both
    need the extra `dashboard` on this machine.
    """
    if output is not None:
        if output.suffix.lower() not in KINDS:
            raise InvalidRequest(f"--output {output} does not end in .svg, .png or .pdf; name a file that does")
        require_folders({"--output": output})
        vega.require_installed()
    elif theme is not None:
        raise InvalidRequest("--theme is for files; give --output, or leave --theme out")
    elif find_spec("plotext") is None:
        raise missing_package("plotext", "a plot in the terminal", "dashboard")
    if len(runs) > MOST_RUNS:
        raise InvalidRequest(f"{len(runs)} runs are given, and a plot has colours for {MOST_RUNS}; name fewer")
    with connect(url) as client:
        name = metric or next(iter(client.headline(runs[0]).metrics), None)
        if name is None:
            raise UnknownName(f"run {runs[0]} has no values yet")
        given: dict[str, object] = {"x": x, "scale": scale, "along": along, "smooth": smooth, "variant": variant}
        given |= {"from": first, "to": last}
        if against is None:
            known = dict.fromkeys(item.name for run in dict.fromkeys(runs) for item in client.headline(run).names)
            if name not in known:
                raise UnknownName.among("metric", name, known)
            pairs = [("run", run) for run in dict.fromkeys(runs)] + [("metric", name)]
            pairs += [(key, str(value)) for key, value in given.items() if value is not None]
            panel = CurveQuery.parse(pairs).panel(client)
        else:
            if len(runs) > 1 or any(value not in ("step", "linear", "auto", 0.0, None) for value in given.values()):
                raise InvalidRequest("--against is for one run, with --metric, --output and --theme alone")
            panel = DifferenceQuery(a=against, b=runs[0], metric=name).panel(client)
    if panel.spec is None:
        raise UnknownName(f"there is nothing to draw of {name}: {'; '.join(panel.notes) or 'it has no value here'}")
    if output is None:
        log_x = "symlog" in str(panel.spec["layer"])  # as the chart decided
        width = max(NARROWEST, min(WIDEST, terminal_width() or IN_PIPES))
        print_lines(draw(panel.spec, panel.title, AXIS_TITLES[x], width, log=scale == "log", log_x=log_x))
    else:
        content = vega.render(panel.picture(), output.suffix.lower()[1:], theme or "light")
        with writing("--output", output):
            write_whole(output, content, mode=0o644)
        say(f"{output}: {len(content):,} bytes")
    for note in panel.notes:
        say(f"note: {note}", err=True)


def draw(
    spec: Mapping[str, Any], title: str, x_title: str, width: int, *, log: bool = False, log_x: bool = False
) -> list[Text]:
    """Return a chart of `web.charts` as characters, and below the chart a line for each run with its newest value."""
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
