"""The picture of the loss by image code: the grid of codes in colours, with axes, a scale and a title."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, features

from evalsvc.files.artifacts import Artifact

Colour = tuple[int, int, int]

SCALE: Sequence[Colour] = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
"""Colours from the smallest loss to the largest, at equal distances. Source: matplotlib's magma (CC0)."""

NO_LOSS: Colour = (190, 205, 225)
"""A cell without a target: a colour that the scale does not have."""

INK: Colour = (30, 30, 30)

GRID_SIDE = 384
"""About how many pixels the longer side of the grid has."""

LEFT, TOP, RIGHT, BOTTOM = 64, 64, 120, 56
"""Pixels around the grid: for the rows' numbers, the title, the scale, and the columns' numbers."""

BAR_WIDTH, BAR_GAP, BAR_STEPS = 18, 24, 4

FONT_SIZE = 13

LEAST_WIDTH = 568
"""Pixels that the title needs."""

MAX_TICKS = 8


@dataclass(frozen=True)
class LossGrid:
    """The mean loss of each image code."""

    losses: Sequence[float | None]
    """Nats per code, row by row; None where no sequence has a target."""
    rows: int
    columns: int
    sequences: int
    """Sequences that the means are over."""


def loss_map(grid: LossGrid) -> Artifact:
    """Draw the grid as a PNG. The smallest loss is black and the largest nearly white.

    The picture does not name the checkpoint: equal losses give equal bytes, which are stored once.
    """
    known = [loss for loss in grid.losses if loss is not None]
    low, high = min(known), max(known)
    cell = max(2, GRID_SIDE // max(grid.rows, grid.columns))
    width, height = grid.columns * cell, grid.rows * cell
    size = (max(LEFT + width + RIGHT, LEAST_WIDTH), TOP + height + BOTTOM)
    image = Image.new("RGB", size, (255, 255, 255))
    cells = Image.new("RGB", (grid.columns, grid.rows))
    cells.putdata([NO_LOSS if loss is None else colour_of(loss, low, high) for loss in grid.losses])
    image.paste(cells.resize((width, height), Image.Resampling.NEAREST), (LEFT, TOP))
    pen = _Pen(ImageDraw.Draw(image))
    pen.frame(LEFT, TOP, width, height)
    pen.title(grid)
    pen.axes(grid, cell)
    pen.scale(image, LEFT + width + BAR_GAP, height, low, high)
    if len(known) < len(grid.losses):
        pen.key("no target", LEFT, TOP + height + 32)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    details = {"grid": (grid.rows, grid.columns), "black": low, "white": high, "unit": "nats/token"}
    return Artifact("loss_map", "loss_map.png", "image/png", stream.getvalue(), details)


def colour_of(loss: float, low: float, high: float) -> Colour:
    """Return the colour of a loss between `low` and `high`."""
    place = (loss - low) / (high - low) * (len(SCALE) - 1) if high > low else 0.0
    first = min(int(place), len(SCALE) - 2)
    share = place - first
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(SCALE[first], SCALE[first + 1], strict=True))
    return red, green, blue


def ticks(count: int) -> range:
    """Return the numbers to write along an axis of `count` cells: at most MAX_TICKS, a power of two apart."""
    step = 1
    while -(-count // step) > MAX_TICKS:
        step *= 2
    return range(0, count, step)


class _Pen:
    """Draws lines and text in one font."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw
        # A Pillow without FreeType has one font of one size.
        self._font = ImageFont.load_default(FONT_SIZE if features.check("freetype2") else None)

    def text(self, x: float, y: float, text: str, anchor: str = "la") -> None:
        self._draw.text((x, y), text, fill=INK, font=self._font, anchor=anchor)

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        self._draw.rectangle((x - 1, y - 1, x + width, y + height), outline=INK)

    def title(self, grid: LossGrid) -> None:
        self.text(LEFT, 22, f"loss by image code, mean over sequences ({grid.sequences:,})")

    def axes(self, grid: LossGrid, cell: int) -> None:
        bottom = TOP + grid.rows * cell
        for row in ticks(grid.rows):
            self.text(LEFT - 8, TOP + (row + 0.5) * cell, str(row), "rm")
        for column in ticks(grid.columns):
            self.text(LEFT + (column + 0.5) * cell, bottom + 6, str(column), "ma")
        self.text(8, TOP + grid.rows * cell / 2, "row", "lm")
        self.text(LEFT + grid.columns * cell / 2, bottom + 32, "column", "ma")

    def scale(self, image: Image.Image, x: int, height: int, low: float, high: float) -> None:
        """Draw the colours of the losses from `low` to `high`, with numbers."""
        last = max(height - 1, 1)
        bar = Image.new("RGB", (1, height))
        bar.putdata([colour_of(last - y, 0, last) for y in range(height)])
        image.paste(bar.resize((BAR_WIDTH, height)), (x, TOP))
        self.frame(x, TOP, BAR_WIDTH, height)
        self.text(x, TOP - 24, "nats/code")
        steps = 0 if high == low else BAR_STEPS if height >= BAR_STEPS * 2 * FONT_SIZE else 1
        for step in range(steps + 1):
            share = step / steps if steps else 0.0
            self.text(x + BAR_WIDTH + 8, TOP + last * (1 - share), f"{low + share * (high - low):.3g}", "lm")

    def key(self, text: str, x: int, y: int) -> None:
        self._draw.rectangle((x, y, x + 12, y + 12), fill=NO_LOSS, outline=INK)
        self.text(x + 18, y, text)
