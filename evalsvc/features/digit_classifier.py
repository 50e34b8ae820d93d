"""Classifier of the digit in an image: kernel ridge regression on scans outside the bundled run's test set.

Images are averaged to the scans' resolution of 8x8; f(x) = Σᵢ aᵢ exp(-γ|x - xᵢ|²) is largest for the class of x.
Source: Saunders, Gammerman, Vovk, "Ridge regression learning algorithm in dual variables", 1998.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, show_name
from evalsvc.features.extractor import FeatureExtractor

GRID = 8
DIGITS = 10


class DigitClassifier(FeatureExtractor):
    """Classifier of images with one digit each. The features are the scores of the ten digits."""

    kind: ClassVar[str] = "digits"
    resizes: ClassVar[tuple[str, ...]] = ("mean-8x8",)
    taps = (DIGITS,)
    images_at_once = 8

    def __init__(
        self,
        points: Tensor,  # [M, 64] float32, features of the training images
        coefficients: Tensor,  # [M, 10] float32
        gamma: Tensor,  # [] float32
        *,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.digest = tensor_digest({"points": points, "coefficients": coefficients, "gamma": gamma})
        self._tensors = tuple(tensor.to(self.device) for tensor in (points, coefficients, gamma))

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Load a classifier from a safetensors file with the tensors `points`, `coefficients` and `gamma`."""
        tensors = {name: tensor.float() for name, tensor in read_weights(path).tensors.items()}
        shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
        count = shapes.get("points", [0])[0]
        expected = {"coefficients": [count, DIGITS], "gamma": [], "points": [count, GRID * GRID]}
        if shapes != expected:
            shown = ", ".join(f"{show_name(name)} {shape}" for name, shape in [*shapes.items()][:10]) or "nothing"
            raise CheckpointMismatch(
                f"{path} is no classifier of digits: it holds {shown}; give points [M, {GRID * GRID}], "
                f"coefficients [M, {DIGITS}] and gamma []"
            )
        return cls(**tensors, device=device)

    def extract(self, images: Tensor, resize: str, taps: Collection[int]) -> dict[int, Tensor]:
        points, coefficients, gamma = self._tensors
        return {DIGITS: kernel(features(images).to(self.device), points, gamma) @ coefficients}

    def predict(self, images: Tensor) -> Tensor:  # [B, 3, H, W] uint8, of any device → [B] int64
        """Return the digit of each image, on the classifier's device."""
        return self.features(images, self.resizes[0])[DIGITS].argmax(1)


def features(images: Tensor) -> Tensor:  # [B, 3, H, W] uint8 → [B, 64] float32 in [0, 1]
    """Return the images at the scans' resolution: means of squares, or of nearly square parts for other sizes."""
    return functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 255, GRID).flatten(1)


def kernel(left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:  # [B, D], [M, D] → [B, M]
    squares: Tensor = torch.cdist(left, right).square()
    return torch.exp(-gamma * squares)
