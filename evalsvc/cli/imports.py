"""`evalsvc import`: enter values of other tools, from files with values by training step.

Of wide files, columns `run - metric` are read, and `…__MIN` and `…__MAX` are skipped, as Weights & Biases exports them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, TextIO

import typer
from typer import Argument, Option

from evalsvc.cli.options import Url, complete_run, connect
from evalsvc.cli.terminal import say
from evalsvc.cli.wording import counted
from evalsvc.data.files import unreadable
from evalsvc.errors import InvalidData, UnknownName
from evalsvc.spec.documents.fields import Direction
from evalsvc.spec.protocol import number_to_json

commands = typer.Typer()

STEPS = ("step", "Step", "_step", "global_step")

TENSORBOARD = ("Wall time", "Step", "Value")

VALUES_AT_ONCE, SERIES_AT_ONCE = 50_000, 1_000
"""Values and series in a request: at most 3 MB and 200,000 JSON values. The service accepts 16 MB and 500,000."""

Cells = Mapping[str, object]
"""Cells of a line by column: text in CSV, any JSON value in JSON lines."""

Row = tuple[int, Cells]
"""Number of a line, and the cells of the line."""


@dataclass(frozen=True)
class Head:
    """Properties that distinguish the series of a file."""

    unit: str = ""
    direction: str = "none"
    variant: str = "raw"
    protocol: str = "not stated"
    metric: str = ""


@dataclass
class FileSeries:
    head: Head
    step: list[int] = field(default_factory=list)
    value: list[float | str] = field(default_factory=list)
    stderr: list[float | None] = field(default_factory=list)
    n: list[int | None] = field(default_factory=list)
    lines: dict[int, int] = field(default_factory=dict)

    def part(self, first: int, last: int) -> dict[str, object]:
        columns: dict[str, Sequence[object]] = {"step": self.step, "value": self.value}
        columns |= {"stderr": self.stderr, "n": self.n}
        return {**vars(self.head), **{name: column[first:last] for name, column in columns.items()}}


@commands.command("import")
def import_history(
    run: Annotated[
        str,
        Argument(
            metavar="RUN",
            help="Name of the training run, which is created if it does not exist.",
            autocompletion=complete_run,
        ),
    ],
    file: Annotated[Path, Argument(help="CSV file with a header line, or JSON lines.")],
    metric: Annotated[
        list[str] | None,
        Option(
            help="Import only this metric; repeat for several. With an export of TensorBoard: the name of its metric.",
            show_default="all",
        ),
    ] = None,
    source: Annotated[str | None, Option(help="Origin of the values.", show_default="the file's name")] = None,
    protocol: Annotated[str, Option(help="How the values were measured, in words.")] = "not stated",
    unit: Annotated[str, Option(help="Unit of the values.", show_default="none")] = "",
    direction: Annotated[Direction, Option(help="Which direction is better.")] = "none",
    variant: Annotated[str, Option(help="Variant of the weights that were measured.")] = "raw",
    replace: Annotated[
        bool, Option("--replace", help="Replace other values of the same steps, measured values too.")
    ] = False,
    url: Url = None,
) -> None:
    """Import values that another tool measured into the history of a run, which marks them as imported.

    The file has one of three forms: the columns step, metric and value, and optionally stderr, n, unit, direction,
    variant and protocol; or a column of steps and a column for each metric, as Weights & Biases exports; or an export
    of TensorBoard. A repeated import changes nothing, so repeat an import that was interrupted.
    """
    series = read_series(file, metric or [], Head(unit, direction, variant, protocol))
    with connect(url) as client:
        done = [client.import_values(run, source or file.name, part, replace=replace) for part in requests(series)]
    counts = {name: sum(getattr(part, name) for part in done) for name in ("new", "replaced", "unchanged")}
    metrics = counted(len({item.head.metric for item in series}), "metric")
    kinds = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"{counted(sum(counts.values()), 'value')} of {metrics}: {kinds}")


def read_series(path: Path, metrics: Sequence[str], defaults: Head) -> list[FileSeries]:
    """Read the series of a file, or only those of `metrics`; for a TensorBoard file, `metrics` is the metric's name."""
    by_head: dict[Head, FileSeries] = {}
    for line, entry in _entries(path, metrics):
        if not entry.get("metric"):
            raise InvalidData(f"{path} line {line} names no metric; write the name of the metric, or remove the line")
        head = Head(**{name: str(entry.get(name) or default) for name, default in vars(defaults).items()})
        _add(path, line, by_head.setdefault(head, FileSeries(head)), entry)
    known = {head.metric for head in by_head}
    for name in metrics:
        if name not in known:
            raise UnknownName.among(f"metric of {path}", name, known)
    return [series for head, series in by_head.items() if not metrics or head.metric in metrics]


def requests(series: Sequence[FileSeries]) -> Iterator[list[dict[str, object]]]:
    """Yield the series in parts of at most VALUES_AT_ONCE values and SERIES_AT_ONCE series."""
    batch: list[dict[str, object]] = []
    size = 0
    for item in series:
        place = 0
        while place < len(item.step):
            room = min(len(item.step) - place, VALUES_AT_ONCE - size)
            batch.append(item.part(place, place + room))
            place, size = place + room, size + room
            if size == VALUES_AT_ONCE or len(batch) == SERIES_AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix in (".jsonl", ".json", ".ndjson"):
                yield from _json_lines(path, stream)
                return
            for cells in (reader := csv.DictReader(stream)):
                if None in cells:
                    where = f"{path} line {reader.line_num}"
                    raise InvalidData(f"{where} has more cells than the header has columns; correct the line")
                yield reader.line_num, cells
    except OSError as error:
        raise unreadable(path, error) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidData(f"{path} is neither CSV nor JSON lines in UTF-8: {error}; export the file again") from None


def _json_lines(path: Path, stream: TextIO) -> Iterator[Row]:
    for line, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{path} line {line} is not JSON: {error}; write one JSON object per line") from None
        if not isinstance(cells, dict):
            raise InvalidData(f"{path} line {line} is {str(cells)[:40]}; write one JSON object per line")
        yield line, cells


def _entries(path: Path, metrics: Sequence[str]) -> Iterator[Row]:
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InvalidData(f"{path} has no values; give a CSV file with a header line and values, or JSON lines")
    columns = list(first[1])
    step = next((name for name in STEPS if name in columns), None)
    is_long, is_tensorboard = {"step", "metric", "value"} <= set(columns), set(columns) == set(TENSORBOARD)
    if is_tensorboard and len(metrics) != 1:
        problem = "is an export of TensorBoard, which does not name its metric"
        raise InvalidData(f"{path} {problem}; name the metric by --metric")
    if step is None:
        raise InvalidData(
            f"{path} has the columns {', '.join(columns)[:200]}; none of them is a step; name the column of "
            f"steps {' or '.join(STEPS)}, and the others metric and value, or by the metrics' names"
        )
    runs: set[str] = set()
    for line, cells in chain([first], rows):
        if is_long:
            yield line, cells
        elif is_tensorboard:
            yield line, {"step": cells["Step"], "metric": metrics[0], "value": cells["Value"]}
        for column, value in cells.items() if not (is_long or is_tensorboard) else ():
            if column == step or column.endswith(("__MIN", "__MAX")):
                continue
            run, dash, name = column.partition(" - ")
            runs.add(run if dash else "")
            if len(runs) > 1:
                names = ", ".join(sorted(runs))
                raise InvalidData(f"{path} has columns of several runs: {names}; export a file for each run")
            name = name if dash else column
            # Names with `_` are the time, or a second column of steps.
            if not name.startswith("_") and value not in (None, "") and (not metrics or name in metrics):
                yield line, {"step": cells.get(step), "metric": name, "value": value}


def _add(path: Path, line: int, series: FileSeries, entry: Cells) -> None:
    where = f"{path} line {line}, {series.head.metric}"
    step = _whole(where, "step", entry.get("step"))
    if step in series.lines:
        raise InvalidData(f"{where}: step {step} is also in line {series.lines[step]}; remove one of the lines")
    series.lines[step] = line
    series.step.append(step)
    value = number_to_json(_number(where, "value", entry.get("value")))
    assert value is not None
    series.value.append(value)
    stderr, n = entry.get("stderr"), entry.get("n")
    error = None if stderr in (None, "") else _number(where, "stderr", stderr)
    series.stderr.append(error if error is not None and math.isfinite(error) else None)
    series.n.append(None if n in (None, "") else _whole(where, "n", n))


def _number(where: str, name: str, cell: object) -> float:
    try:
        if isinstance(cell, (str, int, float)) and not isinstance(cell, bool):
            return float(cell)
    except (ValueError, OverflowError):
        pass
    raise InvalidData(f"{where}: {name} is {str(cell)[:40]!r}; write a number, NaN, Infinity or -Infinity")


def _whole(where: str, name: str, cell: object) -> int:
    number = _number(where, name, cell)
    if not number.is_integer() or number < 0:
        raise InvalidData(f"{where}: {name} is {str(cell)[:40]!r}; write a whole number of at least 0")
    digits = str(cell).strip()  # `float` rounds whole numbers above 2^53
    return int(digits) if digits.isdigit() else int(number)
