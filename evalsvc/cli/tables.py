"""Tables of metrics, and cells that several tables use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evalsvc.cli.terminal import complain, one_line, print_table, say, warn
from evalsvc.compare.curves import Curve
from evalsvc.metrics.shown_metrics import Place, companion_name, divide_rows, yardsticks
from evalsvc.spec.documents import Metric, TaskWarning
from evalsvc.spec.documents.comparisons import DifferenceCurve
from evalsvc.spec.documents.fields import Number
from evalsvc.spec.documents.results import Error
from evalsvc.spec.protocol import describe_fields, labels

YARDSTICKS = "for comparison"
"""Column for the companions of a metric: perplexities, unigram losses and chance."""

RESIZED_AS: Mapping[str, str] = {"pil-bicubic": "clean-fid", "tf1-bilinear": "torch-fidelity"}
"""Program whose resizing of images each method of `resize` is."""


def print_metrics(metrics: Sequence[Metric], protocols: Mapping[str, Mapping[str, object]]) -> None:
    """Print a row per metric, with the fields that distinguish several protocols of a metric.

    `protocols` has the contents of protocols by id.
    """
    columns = ["metric", "value", "± stderr", YARDSTICKS, "n", "unit"]
    names = labels(metrics, protocols)
    divided = divide_rows([Place(metric.name, "", metric.protocol) for metric in metrics])
    rows = []
    for place in divided.shown:
        metric = metrics[place]
        others = [metrics[at] for at in divided.companions.get(place, ())]
        named = [(companion_name(companion.name, metric.name), companion.value) for companion in others]
        shown = yardsticks(named, metric.baseline)
        numbers = [shown_number(metric.value), error_bar(metric.stderr), shown]
        rows.append([names[place], *numbers, shown_items(metric.n, metric.groups), metric.unit])
    if rows:
        print_table(columns, rows, optional=(YARDSTICKS,), drop=("n", "unit"), below=(YARDSTICKS,))
        explain_groups(columns, rows)
        explain_resizing({names[place]: protocols.get(metrics[place].protocol, {}) for place in divided.shown})


def print_warnings(warnings: Iterable[TaskWarning], whose: str = "") -> None:
    """Print the warnings about a task's result on stderr."""
    for warning in warnings:
        warn(f"{whose}{warning.metric}: {one_line(warning.message)}")


def print_errors(errors: Mapping[str, Error], whose: str = "") -> None:
    """Print the errors of tasks on stderr, one line for all tasks that failed for one cause."""
    tasks: dict[str, list[str]] = {}
    for task, error in errors.items():
        tasks.setdefault(f"{error.message} [{error.code}]", []).append(task)
    for text, names in tasks.items():
        complain(f"{whose}{', '.join(names)}: {text}")


def say_curve(curve: Curve | DifferenceCurve, chance: Number | None = None) -> None:
    """Print the line above the table of a curve: the metric, its unit, chance and its protocol."""
    protocol = "of several protocols, forced" if curve.protocol is None else f"protocol {curve.protocol}"
    about = ", ".join(filter(None, [curve.unit, yardsticks([], chance), protocol, describe_fields(curve.differs)]))
    say(f"{curve.metric} ({about})")


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


def explain_resizing(protocols: Mapping[str, Mapping[str, object]]) -> None:
    """Say which resizing the metrics with FID's features have, by the contents of their protocols."""
    for resize, program in RESIZED_AS.items():
        if names := ", ".join(name for name, content in protocols.items() if content.get("resize") == resize):
            say(f"{names}: images were resized as by {program} (resize: {resize}); another resizing is another metric")
