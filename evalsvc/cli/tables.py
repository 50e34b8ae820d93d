"""Metrics as tables, and cells that several tables have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evalsvc.cli.terminal import one_line, print_table, say
from evalsvc.compare.curves import Curve
from evalsvc.spec.documents import Metric, TaskWarning
from evalsvc.spec.documents.comparisons import DifferenceCurve
from evalsvc.spec.protocol import describe_fields, labels


def print_metrics(metrics: Sequence[Metric], protocols: Mapping[str, Mapping[str, object]]) -> None:
    """A line per metric; where several protocols have one, with what tells them apart. `protocols` are by id."""
    if metrics:
        rows = [
            [label, shown_number(metric.value), error_bar(metric.stderr), shown_items(vars(metric)), metric.unit]
            for label, metric in zip(labels(metrics, protocols), metrics, strict=True)
        ]
        print_table(["metric", "value", "± stderr", "n", "unit"], rows)
        explain_groups(map(vars, metrics))


def print_warnings(warnings: Iterable[TaskWarning], whose: str = "") -> None:
    """Print what is suspicious about a task's result, on stderr."""
    for warning in warnings:
        say(f"warning: {whose}{warning.metric}: {one_line(warning.message)}", err=True)


def say_curve(curve: Curve | DifferenceCurve) -> None:
    """Print what is above the table of a curve: the metric, its unit, and how it was measured."""
    protocol = "of several protocols, forced" if curve.protocol is None else f"protocol {curve.protocol}"
    said = ", ".join(filter(None, [curve.unit, protocol, describe_fields(curve.differs)]))
    say(f"{curve.metric} ({said})")


def shown_number(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def error_bar(stderr: float | str | None) -> str:
    if stderr is None:
        return ""
    return f"± {stderr}" if isinstance(stderr, str) else f"± {stderr:.2g}"


def shown_items(row: Mapping[str, Any]) -> str:
    """The number of items, `300 in 60` where they are in fewer independent groups; a service of an older version knows
    of no groups."""
    n, groups = row["n"], row.get("groups")
    if n is None:
        return ""
    return f"{n:,}" if groups is None or groups >= n else f"{n:,} in {groups:,}"


def explain_groups(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say what `300 in 60` means, where a row has it."""
    grouped = next((items for row in rows if " in " in (items := shown_items(row))), None)
    if grouped is not None:
        n, _, groups = grouped.partition(" in ")
        say(f"n: {grouped} is {n} items in {groups} independent groups, over which the standard error is taken")
