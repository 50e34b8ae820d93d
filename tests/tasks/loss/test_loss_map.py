"""The picture of the loss by image code, as somebody who looks at it reads it."""

import io

import pytest
from PIL import Image

from evalsvc.tasks.loss.loss_map import LEFT, NO_LOSS, SCALE, TOP, LossGrid, colour_of, loss_map, ticks


def drawn(grid: LossGrid) -> Image.Image:
    return Image.open(io.BytesIO(loss_map(grid).content))


def test_the_scale_goes_from_the_smallest_loss_to_the_largest() -> None:
    assert (colour_of(1.0, 1.0, 3.0), colour_of(2.0, 1.0, 3.0), colour_of(3.0, 1.0, 3.0)) == (
        SCALE[0],
        SCALE[2],
        SCALE[4],
    )
    brightness = [sum(colour_of(step, 0, 100)) for step in range(101)]
    assert brightness == sorted(brightness)
    assert colour_of(2.0, 2.0, 2.0) == SCALE[0]


def test_a_cell_without_a_target_has_a_colour_and_a_key_of_its_own() -> None:
    image = drawn(LossGrid([1.0, None, 2.0, 3.0], 2, 2, 9))
    assert image.getpixel((LEFT + 192 + 96, TOP + 96)) == NO_LOSS
    below = image.crop((0, TOP + 385, image.width, image.height))
    assert NO_LOSS in {colour for _, colour in below.getcolors(1 << 16) or ()}


@pytest.mark.parametrize(("count", "numbers"), [(1, [0]), (8, [*range(8)]), (12, [0, 2, 4, 6, 8, 10])])
def test_few_numbers_stand_along_an_axis(count: int, numbers: list[int]) -> None:
    assert list(ticks(count)) == numbers
    assert len(ticks(16384)) <= 8


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 700), (700, 1)])
def test_any_grid_can_be_drawn(rows: int, columns: int) -> None:
    """A picture that cannot be drawn would fail a finished task."""
    image = drawn(LossGrid([1.0] * rows * columns, rows, columns, 1))
    assert image.width >= 500
    assert image.crop((0, 0, image.width, TOP - 2)).getcolors(1 << 16) != [(image.width * (TOP - 2), (255, 255, 255))]
