"""A run: its headline curves, then all other metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar
from urllib.parse import quote, urlencode

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec import documents
from evalsvc.spec.documents.history import Axis
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.charts import Scale
from evalsvc.web.page import Content, Page
from evalsvc.web.panels.curve import CurveQuery

MAX_OVERLAID = 7

RunName = Annotated[str, Field(max_length=128)]


class RunPage(Page):
    """The curves of a run."""

    template: ClassVar = "run.html"

    run: RunName
    also: Annotated[
        tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=MAX_OVERLAID, alias="with")
    ] = ()
    """Other runs, drawn over the run."""
    x: Axis = "step"
    scale: Scale = "linear"
    smooth: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Step that is marked in all charts."""

    def content(self, client: Client) -> Content:
        """Return the headline panels with their tables, and the addresses of the other panels.

        Raises:
            UnknownName: there is no such run.
        """
        run = client.run(self.run)
        headline = client.headline(self.run)
        panels = [self._query(metric).panel(client) for metric in headline.metrics]
        rest = [self._query(known.name) for known in headline.names if known.name not in headline.metrics]
        others = [other.name for other in client.runs() if other.name != self.run]
        steps = sorted({checkpoint.step for checkpoint in run.checkpoints})
        values = {
            "query": self,
            "run": run,
            "headline": headline,
            "panels": panels,
            "rest": rest,
            "others": others,
            "steps": steps,
            "warnings": _warnings(client, run),
        }
        watched = [_watched(name, headline.metrics[:1]) for name in (self.run, *self.also)]
        return Content(self.run, values, watched)

    def _query(self, metric: str) -> CurveQuery:
        """Return the query of a metric's panel; runs without the metric are not drawn."""
        return CurveQuery.model_validate(
            {
                "run": (self.run, *self.also),
                "metric": metric,
                "x": self.x,
                "scale": self.scale,
                "smooth": self.smooth,
            }
        )


def _watched(run: str, metrics: Sequence[str]) -> str:
    """Return a REST address whose answer is small and changes with a run's history."""
    query = urlencode({"points": 2, "metric": metrics}, doseq=True)
    return f"/v1/runs/{quote(run, safe='')}/metrics?{query}"


def _warnings(client: Client, run: documents.Run) -> list[str]:
    """Return what is suspicious about the results of the newest checkpoint; metrics that are left out come apart."""
    newest = run.checkpoints[-1].evaluations if run.checkpoints else []
    tasks = [task for evaluation in newest for task in client.evaluation(evaluation.id).tasks]
    warnings = [warning for task in tasks for warning in task.warnings if warning.code != "left_out"]
    return list(dict.fromkeys(f"{warning.metric}: {warning.message}" for warning in warnings))
