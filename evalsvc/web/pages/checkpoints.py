"""Checkpoints of a run, with the evaluations of each."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import RunName

ROWS = 100
"""Checkpoints of a page."""


class CheckpointsPage(Page):
    """The checkpoints of a run, those of the highest steps first."""

    template: ClassVar = "checkpoints.html"

    run: RunName
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of the page, of ROWS checkpoints each."""

    def content(self, source: ServiceReader) -> Content:
        run = source.run(self.run)
        newest_first = run.checkpoints[::-1]
        first = (self.page - 1) * ROWS
        values = {
            "query": self,
            "run": run,
            "rows": newest_first[first : first + ROWS],
            "pages": -(-len(newest_first) // ROWS),
        }
        return Content(f"{self.run}: checkpoints", values)
