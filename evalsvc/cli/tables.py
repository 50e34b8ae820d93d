"""Metrics and histories as tables and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evalsvc.cli.terminal import one_line, print_table, say, write_rows
from evalsvc.compare.curves import group_counts, origins
from evalsvc.spec.documents import Metric, TaskWarning
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


def print_history(document: Mapping[str, Any]) -> None:
    """A run's values, with what tells several protocols of a metric apart, and where imported values are from."""
    history = _history_rows(document)
    rows = [
        [
            row["metric"],
            row["variant"],
            row["protocol"],
            row["differs"],
            str(row[document["x"]]),
            shown_number(row["value"]),
            error_bar(row["stderr"]),
            shown_items(row),
            row["unit"],
            row["source"] or "",
        ]
        for row in history
    ]
    measured = ["value", "± stderr", "n", "unit", "imported from"]
    if rows:
        columns = ["metric", "variant", "protocol", "differs", document["x"], *measured]
        print_table(columns, rows, optional=("differs", "imported from"))
        explain_groups(history)
    else:
        say(f"run {document['run']} has no values yet")
    _print_omitted(document["series"])


def print_curves(joined: Mapping[str, Any]) -> None:
    """Several runs: a table per curve, with a line per step and a column per series."""
    for curve in joined["curves"]:
        say_curve(curve)
        several = curve["protocol"] is None
        columns = [_series_label(series, several) for series in curve["series"]]
        cells = [_cells(series) for series in curve["series"]]
        steps = sorted({at for series in cells for at in series})
        print_table([joined["x"], *columns], [[str(at), *(series.get(at, "") for series in cells)] for at in steps])
    _print_omitted([series for curve in joined["curves"] for series in curve["series"]])
    if not joined["curves"] and not joined["refused"]:
        say(f"runs {', '.join(joined['runs'])} have no values yet")


def say_curve(curve: Mapping[str, Any]) -> None:
    """Print what is above the table of a curve: the metric, its unit, and how it was measured."""
    protocol = "of several protocols, forced" if curve["protocol"] is None else f"protocol {curve['protocol']}"
    said = ", ".join(filter(None, [curve["unit"], protocol, describe_fields(curve["differs"])]))
    say(f"{curve['metric']} ({said})")


def print_tradeoff(document: Mapping[str, Any]) -> None:
    """A line per checkpoint: a metric, and others beside it."""
    metrics = [document["against"], *document["columns"]]
    rows = [
        [row["run"], row["variant"], str(row[document["x"]]), *(_point(row[metric]) for metric in metrics)]
        for row in document["rows"]
    ]
    print_table(["run", "variant", document["x"], *metrics], rows)


def _point(point: Mapping[str, Any] | None) -> str:
    return "" if point is None else _cell(point["value"], point["stderr"], point["import"])


def _cell(value: float | str | None, stderr: float | None, origin: int | None) -> str:
    """A value with its error; one that was not measured here is marked."""
    return " ".join(filter(None, [shown_number(value), error_bar(stderr), "" if origin is None else "(imported)"]))


def _source(imports: Mapping[str, Mapping[str, str]], origin: int | None) -> str | None:
    """Where an imported value is from; None where it was measured."""
    return None if origin is None else imports[str(origin)]["source"]


def _print_omitted(series: Sequence[Mapping[str, Any]]) -> None:
    if omitted := sum(one["omitted"] for one in series):
        say(f"{omitted} values of checkpoints that were posted without tokens_seen are not shown")


def _series_label(series: Mapping[str, Any], several: bool) -> str:
    variant = series["variant"] if series["variant"] != "raw" else ""
    return " ".join(filter(None, [series["run"], variant, describe_fields(series["differs"]) if several else ""]))


def _cells(series: Mapping[str, Any]) -> dict[int, str]:
    columns = zip(series["x"], series["value"], series["stderr"], origins(series), strict=True)
    return {at: _cell(value, stderr, origin) for at, value, stderr, origin in columns}


def _history_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per value."""
    return [
        {
            "metric": series["metric"],
            "variant": series["variant"],
            "protocol": series["protocol"],
            "differs": describe_fields(series["differs"]),
            document["x"]: at,
            "value": value,
            "stderr": stderr,
            "n": n,
            "groups": groups,
            "unit": series["unit"],
            "direction": series["direction"],
            "import": origin,
            "source": _source(document["imports"], origin),
        }
        for series in document["series"]
        for at, value, stderr, n, groups, origin in zip(
            *(series[name] for name in ("x", "value", "stderr", "n")),
            group_counts(series),
            origins(series),
            strict=True,
        )
    ]


def write_history_csv(document: Mapping[str, Any]) -> None:
    """A history, a line per value."""
    write_rows(_history_rows(document))


def write_curves_csv(joined: Mapping[str, Any]) -> None:
    """Histories of several runs, a line per value."""
    rows = []
    for series in (series for curve in joined["curves"] for series in curve["series"]):
        history = {"x": joined["x"], "series": [series], "imports": joined["imports"][series["run"]]}
        rows += [{"run": series["run"], **row} for row in _history_rows(history)]
    write_rows(rows)


def write_tradeoff_csv(document: Mapping[str, Any]) -> None:
    """A line per checkpoint, with a column for each value and each standard error."""
    rows = []
    for row in document["rows"]:
        plain = {key: row[key] for key in ("run", "variant", document["x"])}
        for metric in (document["against"], *document["columns"]):
            point = row[metric] or {}
            plain |= {metric: point.get("value"), f"{metric} stderr": point.get("stderr")}
            plain |= {f"{metric} source": _source(document["imports"][row["run"]], point.get("import"))}
        rows.append(plain)
    write_rows(rows)


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
