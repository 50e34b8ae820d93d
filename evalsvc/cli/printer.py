"""Documents and metrics, printed as a table, as CSV or as JSON, on standard output or into a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from evalsvc.cli.options import Format, require_folders, write_output
from evalsvc.cli.terminal import complain, one_line, print_table, say, say_json, warn, write_rows
from evalsvc.cli.wording import duration
from evalsvc.client import MAX_PAGE
from evalsvc.compare.curves import Curve
from evalsvc.metrics.definitions import title_of
from evalsvc.metrics.shown_metrics import Place, companion_name, divide_rows, yardsticks
from evalsvc.spec.documents import Document, Metric, TaskWarning
from evalsvc.spec.documents.comparisons import DifferenceCurve
from evalsvc.spec.documents.document import json_name
from evalsvc.spec.documents.history import ValueSeries
from evalsvc.spec.documents.results import Error
from evalsvc.spec.names import checkpoint_name
from evalsvc.spec.protocol import describe_fields, labelled, labels

D = TypeVar("D", bound=Document)
Row = Mapping[str, object]

CELLS: Mapping[str, Callable[[Any], object]] = {
    "checkpoint": lambda row: checkpoint_name(row.run, row.step, row.variant),
    "suite": lambda row: row.suite if isinstance(row.suite, str) else row.suite.name,
    "error": lambda row: row.error and row.error.code,
    "took": lambda row: took(row.started_at, row.finished_at),
    "metric": lambda row: labelled(row.metric, row.differs),
    "latest": lambda row: row.latest and row.latest.value,
    "latest at": lambda row: row.latest and row.latest.step,
    "best": lambda row: row.best and row.best.value,
    "best at": lambda row: row.best and row.best.step,
    "best of": lambda row: row.best and f"{row.best.of:,} steps",
}
"""Columns that a table makes of several fields of a document, or of a part of one field."""

PLACES = ("id", "step", "last_step", "evaluation", "first", "last", "latest at", "best at")
"""Columns of whole numbers that are names of things and have no commas."""


@contextmanager
def printed_to(output: Path | None) -> Iterator[None]:
    """Write the output of a block to the file of --output when the block ends without an error, or to stdout."""
    if output is None:
        yield
        return
    require_folders({"--output": output})
    with redirect_stdout(io.StringIO()) as printed:
        yield
    write_output("--output", output, printed.getvalue())
    say(f"wrote {output}", err=True)


def page_size(limit: int) -> int:
    """Return the size of a page of rows where `limit` rows are shown: `first_rows` reads one row more."""
    return min(limit + 1, MAX_PAGE)


def first_rows(rows: Iterable[D], limit: int) -> list[D]:
    """Return at most `limit` documents, and say on stderr if more documents exist."""
    first = list(islice(rows, limit + 1))
    if len(first) > limit:
        say(f"the first {limit:,} are shown; --limit shows more", err=True)
    return first[:limit]


def print_rows(rows: Sequence[Row], form: Format, key: str, nothing: str, drop: Sequence[str] = ()) -> None:
    """Print rows that all have the same columns, in JSON below `key`; the table says `nothing` if no rows exist."""
    if form == "json":
        say_json({key: list(rows)})
    elif form == "csv":
        write_rows([flat(row) for row in rows])
    elif not rows:
        say(nothing)
    else:
        columns = list(rows[0])
        print_table(columns, [[cell(*field) for field in row.items()] for row in rows], optional=columns, drop=drop)


def print_list(documents: Sequence[D], columns: Sequence[str], form: Format, key: str, nothing: str) -> None:
    """Print documents as `print_rows` does. A table has `columns`: fields or CELLS. CSV and JSON have every field."""
    if form != "table":
        print_rows([document.model_dump() for document in documents], form, key, nothing)
        return
    read = {name: CELLS.get(name, attrgetter(name)) for name in columns}
    rows = [{_title(name): cell(name, read[name](document)) for name in columns} for document in documents]
    print_rows(rows, form, key, nothing)


def show(
    document: D, form: Format, text: Callable[[D], None] | None = None, rows: Callable[[D], Sequence[Row]] | None = None
) -> None:
    """Print a document: as `text`, by default a line for each field; as JSON; or as `rows` of CSV, by default one."""
    if form == "json":
        say_json(document.model_dump())
    elif form == "csv":
        write_rows([flat(document.model_dump())] if rows is None else rows(document))
    else:
        (text or print_fields)(document)


def print_fields(document: Document) -> None:
    """Print the fields of a document in their order, then its lists of documents as tables."""
    tables: dict[str, list[Document]] = {}
    for name, value in fields_of(document).items():
        if isinstance(value, list) and value and isinstance(value[0], Document):
            tables[name] = value
        else:
            say(f"{name}: {cell(name, value)}".rstrip())
    for name, rows in tables.items():
        say(f"{name}:")
        columns = [_title(field) for field in fields_of(rows[0])]
        cells = [[cell(*field) for field in fields_of(row).items()] for row in rows]
        print_table(columns, cells, optional=columns, drop=("sha256", "uri"))


def fields_of(document: Document) -> dict[str, Any]:
    """Return the values of a document by the names of its fields in JSON."""
    return {json_name(name): value for name, value in vars(document).items()}


def cell(name: str, value: object) -> str:
    """Return the text of a field for people: times to the minute, numbers with commas, nothing for nothing."""
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if name in PLACES else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Document):
        return ", ".join(f"{key} {text}" for key, field in fields_of(value).items() if (text := cell(key, field)))
    if name == "evaluations" and isinstance(value, list):
        return ", ".join(f"{item.suite} {item.state}" for item in value)
    if isinstance(value, list):
        return ("; " if isinstance(value[0], Document) else ", ").join(cell(name, item) for item in value)
    if isinstance(value, dict):
        plain = {key: item.model_dump() if isinstance(item, Document) else item for key, item in value.items()}
        return json.dumps(plain, ensure_ascii=False)
    return moment(str(value)) if name.endswith("_at") else str(value)


def flat(content: Row) -> dict[str, object]:
    """Return the fields of a document for a row of CSV, with lists and objects written as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for key, value in content.items()
    }


def moment(when: str) -> str:
    """Return a time of the service for people, to the minute, in UTC: `2026-02-03 10:11`."""
    return when[:16].replace("T", " ")


def took(started: str | None, finished: str | None) -> str:
    """Return how long an evaluation took; empty if it has not ended."""
    if started is None or finished is None:
        return ""
    return duration((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())


def print_suite_tasks(tasks: Sequence[Row]) -> None:
    for task in tasks:
        say(f"task {task.get('name')}, kind {task.get('kind')}:")
        for key, value in task.items():
            if key not in ("name", "kind"):
                say(f"  {key}: {json.dumps(value, ensure_ascii=False)}")


def _title(name: str) -> str:
    return json_name(name).removesuffix("_at").replace("_", " ")


YARDSTICKS = "for comparison"
"""Column for the companions of a metric: perplexities, unigram losses and chance."""

RESIZED_AS: Mapping[str, str] = {"pil-bicubic": "clean-fid", "tf1-bilinear": "torch-fidelity"}
"""Program whose resizing of images each method of `resize` is."""


def print_metrics(metrics: Sequence[Metric], protocols: Mapping[str, Mapping[str, object]]) -> None:
    """Print a row per metric, with the fields that distinguish its `protocols`, whose contents are by id."""
    columns = ["metric", "value", "± stderr", YARDSTICKS, "n", "unit"]
    names = labels(metrics, protocols)
    divided = divide_rows([Place(metric.name, "", metric.protocol) for metric in metrics])
    rows = []
    for place in divided.shown:
        metric = metrics[place]
        others = [metrics[at] for at in divided.companions.get(place, ())]
        named = [(companion_name(companion.name, metric.name), companion.value) for companion in others]
        numbers = [shown_number(metric.value), error_bar(metric.stderr), yardsticks(named, metric.baseline)]
        rows.append([names[place], *numbers, shown_items(metric.n, metric.groups), metric.unit])
    if rows:
        print_table(columns, rows, optional=(YARDSTICKS,), drop=("n", "unit"), below=(YARDSTICKS,))
        explain_groups(columns, rows)
        contents = {names[place]: protocols.get(metrics[place].protocol, {}) for place in divided.shown}
        for resize, program in RESIZED_AS.items():
            if same := ", ".join(name for name, content in contents.items() if content.get("resize") == resize):
                text = f"{same}: images were resized as by {program} (resize: {resize})"
                say(f"{text}; another resizing is another metric")


def print_warnings(warnings: Iterable[TaskWarning], whose: str = "") -> None:
    for warning in warnings:
        warn(f"{whose}{warning.metric}: {one_line(warning.message)}")


def print_errors(errors: Mapping[str, Error], whose: str = "") -> None:
    """Print the errors of tasks on stderr, one line for all tasks that failed for one cause."""
    tasks: dict[str, list[str]] = {}
    for task, error in errors.items():
        tasks.setdefault(f"{error.message} [{error.code}]", []).append(task)
    for text, names in tasks.items():
        complain(f"{whose}{', '.join(names)}: {text}")


def about_curve(curve: Curve | DifferenceCurve | ValueSeries, near: str = "") -> str:
    """Return the line above the values of a curve: metric, title, unit, yardsticks, and protocol or variant."""
    forced = ", forced" if isinstance(curve, Curve) else ""
    which = f"of several protocols{forced}" if curve.protocol is None else f"protocol {curve.protocol}"
    if isinstance(curve, ValueSeries):
        which = curve.variant if curve.variant != "raw" else ""
    words = [title_of(curve.metric), curve.unit, near, which, describe_fields(curve.differs)]
    return f"{curve.metric} ({', '.join(filter(None, words))})"


def shown_number(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def error_bar(stderr: float | str | None) -> str:
    if stderr is None:
        return ""
    return f"± {stderr}" if isinstance(stderr, str) else f"± {stderr:.2g}"


def shown_items(n: int | None, groups: int | None) -> str:
    """Return the number of items, or `300 in 60` for items in fewer independent groups."""
    if n is None:
        return ""
    return f"{n:,}" if groups is None or groups >= n else f"{n:,} in {groups:,}"


def explain_groups(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Explain a cell such as `300 in 60` in the column `n`, if a row has one."""
    place = columns.index("n")
    grouped = next((row[place] for row in rows if " in " in row[place]), None)
    if grouped is not None:
        n, _, groups = grouped.partition(" in ")
        say(f"n: {grouped} is {n} items in {groups} independent groups, over which the standard error is taken")
