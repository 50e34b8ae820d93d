"""The first page: a row per run, with its headline metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import Number
from evalsvc.web.page import Content, Page

SHOWN_RUNS = 50
"""Rows of a page: each row asks the service for the run and its headline."""

SPARK_POINTS = 40

RunName = Annotated[str, Field(max_length=128)]


@dataclass(frozen=True)
class Cell:
    """A headline metric of a run."""

    metric: str
    unit: str
    direction: str
    latest: documents.Point | None
    best: documents.Point | None
    values: Sequence[Number]
    """Values along training, in at most SPARK_POINTS buckets."""


@dataclass(frozen=True)
class Row:
    """A run."""

    run: documents.RunSummary
    evaluated: int | None
    """Highest step with a value; None if nothing was evaluated yet."""
    waiting: int
    """Steps whose evaluations have not ended."""
    failed: int
    """Steps whose evaluation failed."""
    base: documents.Base
    cells: Sequence[Cell]


class RunsPage(Page):
    """Every run, with its headline metrics."""

    template: ClassVar = "runs.html"

    find: Annotated[str, Field(max_length=128)] = ""
    """Only runs whose name contains this text."""
    sort: Literal["name", "newest", "steps"] = "name"
    """Order of the rows."""
    only: Annotated[tuple[RunName, ...], Field(max_length=SHOWN_RUNS)] = ()
    """Only these runs."""
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of the page, of SHOWN_RUNS rows each."""

    def content(self, client: Client) -> Content:
        """Return the rows."""
        runs = [
            run
            for run in client.runs()
            if self.find.lower() in run.name.lower() and (not self.only or run.name in self.only)
        ]
        if self.sort == "newest":
            runs.sort(key=lambda run: run.created_at, reverse=True)
        elif self.sort == "steps":
            runs.sort(key=lambda run: -(run.last_step or 0))
        first = (self.page - 1) * SHOWN_RUNS
        rows = [_row(client, run) for run in runs[first : first + SHOWN_RUNS]]
        columns = list(dict.fromkeys(cell.metric for row in rows for cell in row.cells))[:6]
        values = {"query": self, "rows": rows, "columns": columns, "number_of_runs": len(runs), "size": SHOWN_RUNS}
        return Content("Runs", values, ["/v1/runs?limit=1000", "/v1/status"])


def _row(client: Client, run: documents.RunSummary) -> Row:
    base = client.run(run.name).base
    metrics = client.headline(run.name).metrics[:6]
    cells: list[Cell] = []
    gaps: list[documents.Gap] = []
    evaluated: list[int] = []
    if metrics:
        buckets = client.buckets(run.name, metrics, points=SPARK_POINTS)
        summary = {(s.metric, s.variant, s.protocol): s for s in client.summary(run.name, metrics)}
        gaps = buckets.gaps
        for metric in metrics:
            series = [s for s in buckets.series if s.metric == metric and s.x]
            if not series:
                continue
            newest = max(series, key=lambda s: (s.x[-1], s.variant == "raw"))
            evaluated.append(newest.x[-1])
            point = summary[newest.metric, newest.variant, newest.protocol]
            cells.append(Cell(metric, newest.unit, newest.direction, point.latest, point.best, newest.last))
    return Row(
        run,
        max(evaluated, default=None),
        len({gap.step for gap in gaps if gap.why == "pending"}),
        len({gap.step for gap in gaps if gap.why == "failed"}),
        base,
        cells,
    )
