"""A run: its headline curves, then all other metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import InvalidRequest
from evalsvc.metrics.definitions import main_metric
from evalsvc.spec import documents
from evalsvc.spec.documents.history import Axis
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.charts import Scale
from evalsvc.web.page import Content, Page
from evalsvc.web.panel import MOST_RUNS, Panel
from evalsvc.web.panels.curve import Bound, CurveQuery, Weight, watched

MAX_OVERLAID = MOST_RUNS - 1

SHOWN_ROWS = 20
"""Rows of a table below a chart; the panel's own page has all."""

MEASURED = ("succeeded", "partly_failed")
"""States of evaluations that have results."""

WEIGHTS = (0.6, 0.9, 0.97)
"""Weights of neighbouring values that the page offers for smoothing."""

RunName = Annotated[str, Field(max_length=128)]


class RunPage(Page):
    """The curves of a run."""

    template: ClassVar = "run.html"

    run: RunName
    also: Annotated[tuple[RunName, ...], Field(max_length=MAX_OVERLAID, alias="with")] = ()
    """Other runs, drawn over the run."""
    x: Axis = "step"
    scale: Scale = "linear"
    along: Scale = "linear"
    smooth: Weight = 0.0
    first: Annotated[Bound, Field(alias="from")] = None
    """First step or token."""
    last: Annotated[Bound, Field(alias="to")] = None
    """Last step or token."""
    step: Bound = None
    """Step, or number of tokens, that is marked in all charts."""
    find: Annotated[str, Field(max_length=200)] = ""
    """Words that the names of the metrics below the headline must have."""

    def content(self, source: ServiceReader) -> Content:
        run = source.run(self.run, all_checkpoints=False)
        headline = source.headline(self.run)
        names = [known.name for known in headline.names]
        base = self._base(run)
        warnings = list(_warnings(source, run))
        try:
            panels = [self._query(metric, base).panel(source) for metric in headline.metrics]
        except InvalidRequest as error:
            if self.x == "step":
                raise
            warnings.insert(0, error.message)
            panels = []
        others = [other.name for other in source.runs() if other.name != self.run]
        values = {
            "query": self,
            "run": run,
            "headline": headline,
            "panels": panels,
            "facts": _facts(panels),
            "base": checkpoint_name(run.base.run, run.base.step, run.base.variant),
            "newest": _newest(run),
            "rest": [self._query(name, base) for name in self._rest(names, headline.metrics)],
            "hidden": _companions(names),
            "others": others,
            "warnings": warnings,
            "weights": sorted({*WEIGHTS, *([self.smooth] if self.smooth else [])}),
            "shown_rows": SHOWN_ROWS,
        }
        return Content(self.run, values, [watched(self.run), *(watched(name) for name in self.also if name in others)])

    def _query(self, metric: str, base: str | None) -> CurveQuery:
        given = {
            "run": tuple(dict.fromkeys((self.run, *self.also))),
            "metric": metric,
            "base": base,
            "x": self.x,
            "scale": self.scale,
            "along": self.along,
            "smooth": self.smooth,
            "from": self.first,
            "to": self.last,
        }
        return CurveQuery.model_validate(given)

    def _base(self, run: documents.Run) -> str | None:
        base = run.base
        if not base.named or base.run in (self.run, *self.also):
            return None
        return checkpoint_name(base.run, base.step, base.variant)

    def _rest(self, names: Sequence[str], headline: Sequence[str]) -> Iterator[str]:
        companions = _companions(names)
        words = self.find.lower().split()
        for name in sorted(set(names) - set(headline), key=lambda name: (name in companions, name)):
            if all(word in name.lower() for word in words):
                yield name


def _companions(names: Sequence[str]) -> set[str]:
    """Return the metrics that are shown with another one, and have a panel of their own for those who look for it."""
    return {name for name in names if main_metric(name, names) is not None}


def _facts(panels: Sequence[Panel]) -> list[str]:
    if len(panels) < 2:
        return []
    return [note for note in panels[0].notes if all(note in panel.notes for panel in panels)]


def _newest(run: documents.Run) -> str | None:
    for checkpoint in reversed(run.checkpoints):
        if any(each.state in MEASURED for each in checkpoint.evaluations):
            return checkpoint_name(run.name, checkpoint.step, checkpoint.variant)
    return None


def _warnings(source: ServiceReader, run: documents.Run) -> Iterator[str]:
    for checkpoint in reversed(run.checkpoints):
        newest = {each.suite: each.id for each in checkpoint.evaluations if each.state in MEASURED}
        if newest:
            name = checkpoint_name(run.name, checkpoint.step, checkpoint.variant)
            tasks = [task for evaluation in newest.values() for task in source.evaluation(evaluation).tasks]
            warnings = [warning for task in tasks for warning in task.warnings if warning.code != "left_out"]
            yield from dict.fromkeys(f"{name}, {warning.metric}: {warning.message}" for warning in warnings)
            return
