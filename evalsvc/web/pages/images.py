"""Images of a run: the same prompts over steps and runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import EvalsvcError
from evalsvc.spec.documents.results import Artifact
from evalsvc.spec.names import MAX_STEP, parse_checkpoint
from evalsvc.web.page import Content, Page, run_trail
from evalsvc.web.pages.run import RunName
from evalsvc.web.panels.loss_map import LossMapQuery, loss_maps

COLUMNS, ROWS = 8, 12

COMPARED, MAX_LINKS = 64, 200
"""Maximum number of rows whose images are compared to order them, and of steps that have a link or a tick each."""

MAX_FIELDS, MAX_VALUE = 40, 300
"""Maximum number of an image's parameters that are shown, and of characters of each."""

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are decoded. Images come from tasks and their plug-ins, so formats, bytes and pixels have bounds."""

MAX_BYTES, MAX_PIXELS = 2 << 20, 2048 * 2048
"""Maximum size of a file and of an image that are decoded."""

SIDE = 32
"""Side of the square, in pixels, that images are reduced to before they are compared."""


@dataclass(frozen=True)
class Column:
    """A checkpoint with its images, other pictures such as its grid, and its losses by image code."""

    run: str
    step: int
    variant: str = "raw"
    samples: Mapping[str, Artifact] = field(default_factory=dict)
    """Images by name; the name is the same for the same prompt and seed."""
    pictures: Sequence[Artifact] = ()
    maps: Sequence[LossMapQuery] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    missing: bool = False


@dataclass(frozen=True)
class Row:
    """A prompt, with its image in each column; None where a checkpoint has no image of the prompt."""

    name: str
    prompt: str
    images: Sequence[Artifact | None]
    change: float | None = None
    """How much the images of the two compared columns differ, from 0 to 1; None if they are not compared."""
    others: Sequence[Artifact | None] = ()
    """Images that those of a chosen step can be laid over: of the columns that all steps have."""


class ImagesPage(Page):
    """Images of one prompt and seed in a row, of one checkpoint in a column."""

    template: ClassVar = "images.html"

    run: RunName
    also: Annotated[tuple[RunName, ...], Field(max_length=3, alias="with")] = ()
    """Other runs, whose checkpoints are columns, too."""
    at: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Only this step, of each run, whether it has images or not; by default, steps from the first to the last."""
    task: Annotated[str, Field(max_length=128)] = ""
    """Task that sampled the images; by default, the first."""
    find: Annotated[str, Field(max_length=200)] = ""
    order: Literal["prompt", "changed"] = "prompt"
    """Order of the rows: that of the prompts, or those first that changed most between two columns."""
    between: Annotated[tuple[Annotated[int, Field(ge=1, le=COLUMNS)], ...], Field(max_length=2)] = ()
    """Numbers of the two columns that are compared; by default, the first and the last."""
    page: Annotated[int, Field(ge=1, le=10_000)] = 1

    def content(self, source: ServiceReader) -> Content:
        runs = [source.run(name) for name in dict.fromkeys((self.run, *self.also))]
        grids = [grid for run in runs for grid in source.artifacts(run.name, "grid") if grid.pruned_at is None]
        tasks = sorted({grid.task for grid in grids})
        task = self.task or next(iter(tasks), "")
        grids = [grid for grid in grids if grid.task == task]
        steps = sorted({grid.step for grid in grids})
        places = sorted({*steps, *(checkpoint.step for run in runs for checkpoint in run.checkpoints)})
        chosen = _evenly(steps, COLUMNS // len(runs))
        ranked = self._columns(source, grids, chosen)
        columns = ranked if self.at is None else self._at(source, grids, self.at)
        # The order of the rows, and the changes, are those of the chosen steps at any step of the slider.
        rows, compared = self._ordered(source, _rows([*ranked, *columns], self.find), ranked)
        n = len(ranked)
        rows = [replace(row, images=row.images[n:], others=row.images[:n]) for row in rows if any(row.images[n:])]
        others = [name for name in source.run_names() if name != self.run]
        values = {
            "query": self,
            "run": runs[0],
            "tasks": tasks,
            "task": task,
            "steps": steps,
            "places": places,
            "max_links": MAX_LINKS,
            "chosen": chosen,
            "columns": columns,
            "ranked": ranked,
            "unshown": [step for step in steps if self.at is None and step not in chosen],
            "compared": compared,
            "limit": COMPARED,
            "rows": rows[(self.page - 1) * ROWS : self.page * ROWS],
            "count": len(rows),
            "pages": -(-len(rows) // ROWS),
            "others": others,
            "names": [run.name for run in runs],
            "details": _details,
            "is_image": lambda artifact: artifact.media_type in IMAGE_TYPES,
        }
        return Content(f"{self.run}: images", values, trail=run_trail(self.run, "/images", "Images", others=others))

    def _columns(self, source: ServiceReader, grids: Sequence[Artifact], steps: Sequence[int]) -> list[Column]:
        latest = {(grid.step, grid.run, grid.variant): grid for grid in grids if grid.step in steps}
        return [_column(source, grid) for _, grid in sorted(latest.items(), key=lambda item: item[0][0])][:COLUMNS]

    def _at(self, source: ServiceReader, grids: Sequence[Artifact], step: int) -> list[Column]:
        columns = self._columns(source, grids, [step])
        shown = {column.run for column in columns}
        return [*columns, *(Column(run, step, missing=True) for run in (self.run, *self.also) if run not in shown)]

    def _ordered(
        self, source: ServiceReader, rows: list[Row], columns: Sequence[Column]
    ) -> tuple[list[Row], tuple[Column, Column] | None]:
        numbers = self.between if len(self.between) == 2 else (1, len(columns))
        first, second = (min(number, len(columns)) for number in numbers)
        if self.order != "changed" or first == second:
            return rows, None
        pairs = [(row, row.images[first - 1], row.images[second - 1]) for row in rows[:COMPARED]]
        compared = [replace(row, change=_change_between(source, left, right)) for row, left, right in pairs]
        compared.sort(key=lambda row: -1.0 if row.change is None else row.change, reverse=True)
        return [*compared, *rows[COMPARED:]], (columns[first - 1], columns[second - 1])


def _column(source: ServiceReader, grid: Artifact) -> Column:
    own = [
        artifact
        for artifact in source.artifacts(grid.run, step=grid.step)
        if artifact.variant == grid.variant and artifact.pruned_at is None
    ]
    samples = {
        sample.name: sample
        for sample in own
        if sample.kind == "sample" and (sample.task, sample.evaluation) == (grid.task, grid.evaluation)
    }
    pictures = [grid, *(each for each in own if each.kind not in ("grid", "sample") and each.media_type in IMAGE_TYPES)]
    settings = {name: value for name, value in _details(grid).items() if name not in ("images", "columns", "prompts")}
    return Column(grid.run, grid.step, grid.variant, samples, pictures, loss_maps(own), settings)


def _rows(columns: Sequence[Column], find: str) -> list[Row]:
    rows = []
    for name in sorted({name for column in columns for name in column.samples}):
        images = [column.samples.get(name) for column in columns]
        details = next(image.details for image in images if image is not None) or {}
        prompt = str(details.get("prompt", ""))
        if find.lower() in prompt.lower():
            rows.append(Row(name, prompt, images))
    return rows


def _details(artifact: Artifact, prompt: str = "") -> dict[str, str]:
    given = [(name, value) for name, value in (artifact.details or {}).items() if (name, value) != ("prompt", prompt)]
    texts = [(name, "–" if value is None else str(value)) for name, value in given[:MAX_FIELDS]]
    return {name[:MAX_VALUE]: text[:MAX_VALUE] + "…" * (len(text) > MAX_VALUE) for name, text in texts}


def _evenly(steps: Sequence[int], number: int) -> list[int]:
    if len(steps) <= number:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (number - 1))] for i in range(number)] if number > 1 else [steps[-1]]


def most_changed(source: ServiceReader, checkpoints: Sequence[str]) -> tuple[Sequence[Column], Sequence[Row]]:
    """Return the images of two checkpoints by a task that both have, the prompts that changed most first."""
    grids: list[Mapping[str, Artifact]] = []
    for run, step, variant in map(parse_checkpoint, checkpoints):
        own = [grid for grid in source.artifacts(run, "grid", step) if grid.variant == variant]
        grids.append({grid.task: grid for grid in own if grid.pruned_at is None})
    columns = [_column(source, side[task]) for task in sorted(grids[0].keys() & grids[1].keys())[:1] for side in grids]
    rows = [row for row in _rows(columns, "") if None not in row.images][:COMPARED]
    rows = [replace(row, change=_change_between(source, *row.images)) for row in rows]
    return columns, sorted(rows, key=lambda row: row.change or 0.0, reverse=True)[:ROWS]


def _change_between(source: ServiceReader, one: Artifact | None, other: Artifact | None) -> float | None:
    """Return the mean of |a − b| / 255 over pixels and colours; None if an image is missing or cannot be decoded."""
    if one is None or other is None:
        return None
    if one.sha256 == other.sha256:
        return 0.0
    pixels = []
    for artifact in (one, other):
        if artifact.size > MAX_BYTES or artifact.pruned_at is not None:
            return None
        try:
            pixels.append(reduced(source.artifact_content(artifact.id).content))
        except EvalsvcError:
            return None
    left, right = pixels
    if left is None or right is None:
        return None
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / (255 * len(left))


def reduced(content: bytes) -> bytes | None:
    """Return an image as SIDE × SIDE pixels of red, green and blue. None if the content is no image within bounds, or
    Pillow is not installed: only workers need Pillow."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # Pillow raises any of these for broken files
        return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
