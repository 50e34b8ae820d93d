"""A run: its headline curves, then all other metrics; and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import InputError, InvalidRequest
from evalsvc.metrics.definitions import main_metric, title_of
from evalsvc.spec import documents
from evalsvc.spec.documents.history import Axis
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.charts import Along, Scale, colours_of
from evalsvc.web.page import Content, Page, run_trail
from evalsvc.web.panel import MOST_RUNS, MetricName
from evalsvc.web.panels.curve import Bound, CurveQuery, Weight, watched

MAX_OVERLAID = MOST_RUNS - 1

SHOWN_ROWS = 20
"""Rows of a table below a chart; the panel's own page has all."""

MEASURED = ("succeeded", "partly_failed")

CHECKPOINTS = 50
"""Rows of a page of checkpoints."""

STATES = ("failed", "partly_failed", "running", "queued", "cancelled", "succeeded")
"""States of evaluations, that of their checkpoint first."""

QUICK_SECONDS = 1.0
"""Time that a page of checkpoints may take for comparisons. The service keeps them, so a next request has more."""

STRIP, MAX_PINS, MAX_OPEN = 10, 12, 2
"""Steps of the table of steps besides the best ones, metrics that are pinned, and sections that a search opens."""

WEIGHTS = (0.6, 0.9, 0.97)

RunName = Annotated[str, Field(max_length=128)]


class RunPage(Page):
    template: ClassVar = "run.html"

    run: RunName
    also: Annotated[tuple[RunName, ...], Field(max_length=MAX_OVERLAID, alias="with")] = ()
    x: Axis = "step"
    scale: Scale = "linear"
    along: Along = "auto"
    smooth: Weight = 0.0
    first: Annotated[Bound, Field(alias="from")] = None
    last: Annotated[Bound, Field(alias="to")] = None
    step: Bound = None
    """Step, or number of tokens, that is marked in all charts."""
    find: Annotated[str, Field(max_length=200)] = ""
    """Words that the names of the metrics below the headline must have."""
    pin: Annotated[tuple[MetricName, ...], Field(max_length=MAX_PINS)] = ()
    """Metrics whose charts follow those of the headline."""

    def content(self, source: ServiceReader) -> Content:
        run = source.run(self.run, all_checkpoints=False)
        headline = source.headline(self.run)
        names = [known.name for known in headline.names]
        base = checkpoint_name(run.base.run, run.base.step, run.base.variant)
        drawn_base = base if run.base.named and run.base.run not in (self.run, *self.also) else None
        newest, warnings = _newest(source, run)
        try:
            panels = [self._query(metric, drawn_base).panel(source) for metric in headline.metrics]
        except InvalidRequest as error:
            if self.x == "step":
                raise
            warnings.insert(0, error.message)
            panels = []
        companions = {name for name in names if main_metric(name, names) is not None}
        rest = sorted(set(names) - set(headline.metrics), key=lambda name: (name in companions, name))
        pinned = [name for name in dict.fromkeys(self.pin) if name in rest]
        words = self.find.lower().split()
        sections: dict[str, list[CurveQuery]] = {}
        for name in rest:
            if name not in pinned and all(word in name.lower() for word in words):
                sections.setdefault(name.partition("/")[0], []).append(self._query(name, drawn_base))
        runs = source.runs()
        others = [other.name for other in runs if other.name != self.run]
        trail = run_trail(self.run, "", others=others)
        notes = panels[0].notes if len(panels) > 1 else ()
        values = {
            "query": self,
            "run": run,
            "headline": headline,
            "panels": panels,
            "facts": [note for note in notes if all(note in panel.notes for panel in panels)],
            "base": base,
            "newest": newest,
            **_strip(source, self.run),
            "summary": next((each for each in runs if each.name == self.run), None),
            "titles": {known.name: known.title for known in headline.names},
            "pinned": [self._query(name, drawn_base) for name in pinned],
            "sections": dict(sorted(sections.items())),
            "most_open": MAX_OPEN,
            "hidden": companions,  # each has a panel of its own for those who look for it
            "others": others,
            "colours": colours_of(list(dict.fromkeys((self.run, *self.also)))),
            "warnings": warnings,
            "weights": [("", "none"), *((each, each) for each in sorted({*WEIGHTS, self.smooth} - {0}))],
            "shown_rows": SHOWN_ROWS,
        }
        own = [watched(self.run), *(watched(name) for name in self.also if name in others)]
        return Content(self.run, values, own, trail)

    def pin_address(self, metric: str) -> str:
        """Return the address of the page with another metric pinned, or with a pinned one no longer pinned."""
        pins = tuple(name for name in (*self.pin, metric) if name != metric or metric not in self.pin)[-MAX_PINS:]
        return self.address(pin=pins)

    def _query(self, metric: str, base: str | None) -> CurveQuery:
        given = {name: getattr(self, name) for name in ("x", "scale", "along", "smooth")}
        given |= {"metric": metric, "base": base, "from": self.first, "to": self.last}
        return CurveQuery.model_validate({**given, "run": tuple(dict.fromkeys((self.run, *self.also)))})


def _strip(source: ServiceReader, run: str) -> Mapping[str, object]:
    """Return the values of the headline metrics at a few steps: evenly many of all, and the best one of each metric."""
    series = source.headlines([run], points=STRIP, strip=True)[0].series
    values = {item.metric: dict(zip(item.x, item.values, strict=True)) for item in series}
    steps = sorted({step for column in values.values() for step in column})
    shown = {steps[at * (len(steps) - 1) // (STRIP - 1)] for at in range(STRIP)} if len(steps) > STRIP else {*steps}
    best = {item.metric: item.best for item in series if item.best is not None}
    for metric, point in best.items():
        values[metric][point.step] = point.value
        shown.add(point.step)
    heads = {(item.metric, item.variant, item.protocol) for item in series}
    for step in {point.step for point in best.values()}:
        if any(step not in column for column in values.values()):
            for other in source.buckets(run, list(values), points=2, first=step, last=step).series:
                if other.last and (other.metric, other.variant, other.protocol) in heads:
                    values[other.metric][step] = other.last[-1]
    variants = {step: item.variant for item in reversed(series) for step in values[item.metric]}
    names = {step: checkpoint_name(run, step, variants[step]) for step in sorted(shown, reverse=True)}
    return {"strip": series, "at_steps": values, "steps": names}


def _newest(source: ServiceReader, run: documents.Run) -> tuple[str | None, list[str]]:
    for checkpoint in reversed(run.checkpoints):
        newest = {each.suite: each.id for each in checkpoint.evaluations if each.state in MEASURED}
        if newest:
            name = checkpoint_name(run.name, checkpoint.step, checkpoint.variant)
            tasks = [task for evaluation in newest.values() for task in source.evaluation(evaluation).tasks]
            warnings = [warning for task in tasks for warning in task.warnings if warning.code != "left_out"]
            return name, list(dict.fromkeys(f"{name}, {warning.metric}: {warning.message}" for warning in warnings))
    return None, []


class CheckpointsPage(Page):
    """The checkpoints of a run with the evaluations of each, those of the highest steps first."""

    template: ClassVar = "checkpoints.html"

    run: RunName
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    state: Literal["", "failed"] = ""
    verdicts: Literal["quick", "all"] = "quick"
    """Which comparisons the page waits for: those of QUICK_SECONDS, or all."""

    def content(self, source: ServiceReader) -> Content:
        run, metric = source.run(self.run), next(iter(source.headline(self.run).metrics), "")
        rows = _rows(source, run, metric)[::-1]
        failed = [row for row in rows if row[2] in ("failed", "partly_failed")]
        shown = failed if self.state else rows
        part = shown[(self.page - 1) * CHECKPOINTS : self.page * CHECKPOINTS]
        until = math.inf if self.verdicts == "all" else time.monotonic() + QUICK_SECONDS
        contrasts = {
            name: _contrast(source, before, name, metric)
            for _, name, _, before in part
            if before and time.monotonic() < until
        }
        values = {"query": self, "rows": part, "total": len(rows), "failed": len(failed), "contrasts": contrasts}
        values |= {"metric": metric, "words": title_of(metric), "pages": -(-len(shown) // CHECKPOINTS)}
        trail = run_trail(self.run, "/checkpoints", "Checkpoints", others=source.run_names())
        return Content(f"{self.run}: checkpoints", values, trail=trail)


def _rows(
    source: ServiceReader, run: documents.Run, metric: str
) -> list[tuple[documents.RunCheckpoint, str, str, str | None]]:
    """Return the checkpoints by step with their names and states, each with the name of the one before: the last of the
    variant that was measured by a suite with the metric too, or without."""
    measured = [{each.suite: each.id for each in row.evaluations if each.state in MEASURED} for row in run.checkpoints]
    newest = {suite: number for numbers in measured for suite, number in numbers.items()}
    tasks = [(suite, task) for suite, number in newest.items() for task in source.evaluation(number).tasks]
    suites = {suite for suite, task in tasks if any(value.name == metric for value in task.metrics or ())}
    last, rows = dict[tuple[str, bool], str](), []
    for row, numbers in zip(run.checkpoints, measured, strict=True):
        name, kind = checkpoint_name(run.name, row.step, row.variant), (row.variant, bool(numbers.keys() & suites))
        states = {evaluation.suite: evaluation.state for evaluation in row.evaluations}.values()
        state = min(states, key=STATES.index, default="not evaluated")
        rows.append((row, name, state, last.get(kind) if numbers else None))
        last |= {kind: name} if numbers else {}
    return rows


def _contrast(source: ServiceReader, a: str, b: str, metric: str) -> documents.MetricDifference | None:
    with suppress(InputError):  # no values, or of other protocols
        return next(iter(source.compare(a, b, [metric]).contrasts), None)
    return None
