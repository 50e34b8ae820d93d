"""How images and captions are chosen and fitted: what the parameters of several tasks have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Crop = Literal["center", "center-torchvision", "none"]
Filter = Literal["lanczos", "bicubic"]

Selection = Literal["first", "random", "one_per_image"]
"""Which captions of a file are prompts: the first, a random choice, or one each of randomly chosen images."""


@dataclass(frozen=True)
class Fit:
    """How an image becomes a square of pixels. All of it moves numbers."""

    size: int
    """Height and width."""
    crop: Crop = "center"
    """`center`: the square in the middle, as wide as the short side; of an odd margin the smaller half comes first.
    `center-torchvision`: the same, but the margin's half is rounded as torchvision's `center_crop` rounds it, to the
    even side: one image of COCO in eight is cut one pixel further on. `none`: the whole image, squeezed to a square."""
    filter: Filter = "lanczos"
    """Of the resampling, with antialiasing, in uint8: Pillow's."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
