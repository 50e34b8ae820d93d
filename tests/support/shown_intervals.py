"""The intervals of a checkpoint's values on everything that shows intervals: REST, tables, CSV, charts and commands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx2

from evalsvc.client import Client
from evalsvc.metrics.definitions import main_metric
from evalsvc.spec.documents import MetricDifference
from evalsvc.spec.names import parse_checkpoint
from evalsvc.web.formats import number

Ends = tuple[float | None, float | None]
Shown = dict[tuple[str, str], Ends]

Run = Callable[..., str]


def stored_intervals(client: Client, checkpoint: str) -> Shown:
    run, step, _ = parse_checkpoint(checkpoint)
    return {(each.name, each.protocol): (each.low, each.high) for each in client.results(run, step).metrics}


def shown_intervals(client: Client, url: str, checkpoint: str, run_command: Run) -> Mapping[str, Shown]:
    """Return the intervals of a run with one checkpoint, by the place that shows them."""
    run, step, _ = parse_checkpoint(checkpoint)
    metrics = client.results(run, step).metrics
    page = httpx2.get(f"{url}/compare", params={"a": checkpoint, "b": checkpoint}).text
    table = client.table([run])
    columns = zip(table["metric"], table["protocol"], table["low"], table["high"], strict=True)
    history_of = ("history", run, "--all", "--format")
    compared = client.compare(checkpoint, checkpoint).contrasts
    command = json.loads(run_command("compare", checkpoint, checkpoint, "--format", "json"))["contrasts"]
    return {
        "history": _of_json(client.history(run).model_dump()["series"]),
        "REST": _of_json(httpx2.get(f"{url}/v1/runs/{run}/metrics").json()["series"]),
        "buckets": _of_json(client.buckets(run, points=5).model_dump()["series"]),
        "summary": {
            (each.metric, each.protocol): (each.latest.low, each.latest.high)
            for each in client.summary(run)
            if each.latest
        },
        "table": {(metric, protocol): (low, high) for metric, protocol, low, high in columns},
        "comparison": {
            (row.metric, side.protocol): (side.low, side.high) for row in compared for side in (row.a, row.b) if side
        },
        "compare page": _of_page(page, compared),
        "curve.csv": _of_panels(url, run, metrics, "csv"),
        "chart": _of_panels(url, run, metrics, "json"),
        "history --format csv": _of_rows(csv.DictReader(io.StringIO(run_command(*history_of, "csv")))),
        "history --format json": _of_json(json.loads(run_command(*history_of, "json"))["series"]),
        "compare --format json": {
            (row["metric"], a["protocol"]): (a["low"], a["high"]) for row in command for a in [row["a"]]
        },
    }


def _of_json(series: Iterable[Mapping[str, Any]]) -> Shown:
    return {(each["metric"], each["protocol"]): (each["low"][-1], each["high"][-1]) for each in series}


def _of_rows(rows: Iterable[Mapping[str, str]]) -> Shown:
    return {(row["metric"], row["protocol"]): (_number(row["low"]), _number(row["high"])) for row in rows}


def _of_page(page: str, compared: Sequence[MetricDifference]) -> Shown:
    """Return the intervals that the page shows, with the digits that errors leave; companions, which have no row, count
    as shown."""
    sides = {row.metric: row.a for row in compared if row.a is not None}
    shown: Shown = {}
    for metric, side in sides.items():
        low, high = (number(end, side.stderr) for end in (side.low, side.high))
        is_shown = main_metric(metric, sides) is not None or f"[{low}, {high}]" in page
        shown[metric, side.protocol] = (side.low, side.high) if is_shown or side.low is None else (None, None)
    return shown


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _of_panels(url: str, run: str, metrics: Iterable[Any], kind: str) -> Shown:
    """Return the intervals in a chart's CSV, or those that a chart draws as a band and shows next to the pointer."""
    shown: Shown = {}
    for metric in metrics:
        query = {"run": run, "metric": metric.name, "protocol": metric.protocol}
        panel = httpx2.get(f"{url}/panels/curve.{kind}", params=query).raise_for_status()
        if kind == "csv":
            shown |= _of_rows({**query, **row} for row in csv.DictReader(io.StringIO(panel.text)))
        else:
            (row,) = panel.json()["datasets"]["points"]
            shown[metric.name, metric.protocol] = (row.get("low"), row.get("high"))
    return shown
