"""Two checkpoints, or two runs along their steps, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest
from evalsvc.spec import documents
from evalsvc.spec.names import CHECKPOINT
from evalsvc.web.page import Content, Page
from evalsvc.web.panel import Panel
from evalsvc.web.panels.contrasts import ContrastsQuery
from evalsvc.web.panels.difference import DifferenceQuery

Side = Annotated[str, Field(max_length=500)]


class ComparePage(Page):
    """Two checkpoints (RUN@STEP) or two runs (RUN)."""

    template: ClassVar = "compare.html"

    a: Side = ""
    """Checkpoint or run that the other one is compared with."""
    b: Side = ""
    """Checkpoint or run that is compared."""

    def content(self, client: Client) -> Content:
        """Return the form, and the comparison if both sides are given.

        Raises:
            InvalidRequest: one side is a checkpoint and the other one is a run.
            UnknownName, NotComparable: see `GET /v1/compare`.
        """
        runs = [run.name for run in client.runs()]
        comparison, panels = self._compared(client)
        title = f"{self.b} against {self.a}" if self.a and self.b else "Compare"
        values = {"query": self, "runs": runs, "comparison": comparison, "panels": panels}
        return Content(title, values)

    def _compared(self, client: Client) -> tuple[documents.Comparison | None, Sequence[Panel]]:
        if not (self.a and self.b):
            return None, []
        are_checkpoints = [CHECKPOINT.fullmatch(side) is not None for side in (self.a, self.b)]
        if all(are_checkpoints):
            return client.compare(self.a, self.b), [ContrastsQuery(a=self.a, b=self.b).panel(client)]
        if any(are_checkpoints):
            raise InvalidRequest(
                f"one side of {self.a!r} and {self.b!r} is a checkpoint and the other one is a run; give two "
                "checkpoints (RUN@STEP) or two runs (RUN)"
            )
        shared = [curve.metric for curve in client.compare_runs(self.a, self.b).curves]
        headline = [metric for metric in client.headline(self.a).metrics if metric in shared]
        metrics = list(dict.fromkeys(headline or shared))[:12]
        return None, [DifferenceQuery(a=self.a, b=self.b, metric=metric).panel(client) for metric in metrics]
