"""Images of a run: the same prompts over steps and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.spec.documents.results import Artifact
from evalsvc.spec.names import MAX_STEP
from evalsvc.web.page import Content, Page
from evalsvc.web.pages.run import RunName

COLUMNS = 8
"""Most columns of a page; each is a checkpoint."""

ROWS = 12
"""Prompts of a page."""


@dataclass(frozen=True)
class Column:
    """A checkpoint with images."""

    run: str
    step: int
    variant: str
    samples: Sequence[Artifact]


@dataclass(frozen=True)
class Row:
    """A prompt, with its image in each column; None where a checkpoint has no image of the prompt."""

    name: str
    """Name of the files, which is the same for the same prompt and seed."""
    prompt: str
    images: Sequence[Artifact | None]


class ImagesPage(Page):
    """Images of one prompt and seed in a row, of one checkpoint in a column."""

    template: ClassVar = "images.html"

    run: RunName
    also: Annotated[tuple[RunName, ...], Field(max_length=3, alias="with")] = ()
    """Other runs, whose checkpoints are columns, too."""
    step: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_STEP)], ...], Field(max_length=COLUMNS)] = ()
    """Steps to show; by default, the first, the last, and others evenly between."""
    task: Annotated[str, Field(max_length=128)] = ""
    """Task that sampled the images; by default, the first."""
    find: Annotated[str, Field(max_length=200)] = ""
    """Only prompts that contain this text."""
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of the page, of ROWS prompts each."""

    def content(self, client: Client) -> Content:
        """Return the rows.

        Raises:
            UnknownName: there is no such run.
        """
        run = client.run(self.run)
        grids = [grid for name in (self.run, *self.also) for grid in client.artifacts(name, "grid")]
        grids = [grid for grid in grids if grid.pruned_at is None]
        tasks = sorted({grid.task for grid in grids})
        task = self.task or (tasks[0] if tasks else "")
        steps = sorted({grid.step for grid in grids if grid.task == task})
        chosen = [step for step in self.step if step in steps] or _evenly(steps, COLUMNS // (1 + len(self.also)))
        columns = _columns(client, grids, task, chosen)
        rows = [row for row in _rows(columns) if self.find.lower() in row.prompt.lower()]
        first = (self.page - 1) * ROWS
        values = {
            "query": self,
            "run": run,
            "tasks": tasks,
            "task": task,
            "steps": steps,
            "chosen": chosen,
            "columns": columns,
            "rows": rows[first : first + ROWS],
            "pages": -(-len(rows) // ROWS),
            "others": [other.name for other in client.runs() if other.name != self.run],
        }
        return Content(f"{self.run}: images", values)


def _columns(client: Client, grids: Sequence[Artifact], task: str, steps: Sequence[int]) -> list[Column]:
    """Return the columns by step, and of one step by run."""
    places = {(grid.step, grid.run, grid.variant): grid for grid in grids if grid.task == task and grid.step in steps}
    columns = []
    for (step, run, variant), grid in sorted(places.items(), key=lambda item: item[0][0]):
        samples = [
            sample
            for sample in client.artifacts(run, "sample", step)
            if sample.task == task and sample.variant == variant and sample.evaluation == grid.evaluation
        ]
        columns.append(Column(run, step, variant, samples))
    return columns[:COLUMNS]


def _rows(columns: Sequence[Column]) -> list[Row]:
    by_name = [{sample.name: sample for sample in column.samples} for column in columns]
    names = sorted({name for samples in by_name for name in samples})
    rows = []
    for name in names:
        images = [samples.get(name) for samples in by_name]
        details = next(image.details for image in images if image is not None) or {}
        rows.append(Row(name, str(details.get("prompt", "")), images))
    return rows


def _evenly(steps: Sequence[int], number: int) -> list[int]:
    """Return up to `number` steps, the first and the last among them, with equal distances in the list."""
    if len(steps) <= number:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (number - 1))] for i in range(number)] if number > 1 else [steps[-1]]
