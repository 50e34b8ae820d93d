"""An extractor of another package: one feature, the mean of all pixels times a number in a file."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from evalsvc.features import FeatureExtractor


class Brightness(FeatureExtractor):
    kind: ClassVar[str] = "brightness"
    resizes: ClassVar[tuple[str, ...]] = ("none",)

    def __init__(self, factor: float, device: str) -> None:
        self.factor = factor
        self.digest = f"brightness {factor}"
        self.taps = (1,)
        self.device = torch.device(device)
        self.images_at_once = 8

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        return cls(float(path.read_text()), device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        return {1: self.factor * images.to(self.device).float().flatten(1).mean(1, keepdim=True)}
