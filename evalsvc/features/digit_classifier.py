"""Classifier of the digit in an image: kernel ridge regression on scans outside the bundled run's test set.

Images are averaged to the scans' resolution of 8x8; f(x) = Σᵢ aᵢ exp(-γ|x - xᵢ|²) is largest for the class of x.
Source: Saunders, Gammerman, Vovk, "Ridge regression learning algorithm in dual variables", 1998.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, InvalidData, show_name

GRID = 8


class DigitClassifier:
    """Classifier of images with one digit each."""

    def __init__(
        self,
        points: Tensor,  # [M, 64] float32, features of the training images
        coefficients: Tensor,  # [M, 10] float32
        gamma: Tensor,  # [] float32
        *,
        device: str = "cpu",
    ) -> None:
        tensors = {"points": points, "coefficients": coefficients, "gamma": gamma}
        self.device = torch.device(device)
        self._tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}

    @property
    def classes(self) -> int:
        return int(self._tensors["coefficients"].shape[1])

    @property
    def digest(self) -> str:
        """Identity of the weights; see `tensor_digest`."""
        return tensor_digest(self._tensors)

    def predict(
        self,
        images: Tensor,  # [B, 3, H, W] uint8, H and W multiples of 8, of any device
    ) -> Tensor:  # [B] int64
        """Return the digit of each image, on the classifier's device. Raises InvalidData for another shape or dtype."""
        points, coefficients, gamma = (self._tensors[name] for name in ("points", "coefficients", "gamma"))
        return (kernel(features(images).to(self.device), points, gamma) @ coefficients).argmax(1)


def features(
    images: Tensor,  # [B, 3, H, W] uint8
) -> Tensor:  # [B, 64] float32 in [0, 1]
    """Return the images at the scans' resolution. Raises InvalidData."""
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise InvalidData(f"images of digits are {images.dtype} {list(images.shape)}; give uint8 [B, 3, H, W]")
    height, width = images.shape[2:]
    if not height or not width or height % GRID or width % GRID:
        raise InvalidData(f"images of digits are {height}x{width} pixels; give multiples of {GRID}")
    grey = images.float().mean(1, keepdim=True) / 255
    return functional.avg_pool2d(grey, (height // GRID, width // GRID)).flatten(1)


def kernel(
    left: Tensor,  # [B, D]
    right: Tensor,  # [M, D]
    gamma: Tensor,  # []
) -> Tensor:  # [B, M]
    squares: Tensor = torch.cdist(left, right).square()
    return torch.exp(-gamma * squares)


def load_classifier(path: str | Path, *, device: str = "cpu") -> DigitClassifier:
    """Load a classifier from a safetensors file with the tensors `points`, `coefficients` and `gamma` onto `device`.

    Raises:
        CheckpointError: as `read_weights`.
        CheckpointMismatch: the file holds other tensors.
    """
    path = Path(path)
    tensors = {name: tensor.float() for name, tensor in read_weights(path).tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    count = shapes.get("points", [0])[0]
    expected = {"coefficients": [count, 10], "gamma": [], "points": [count, GRID * GRID]}
    if shapes != expected:
        shown = ", ".join(f"{show_name(name)} {shape}" for name, shape in [*shapes.items()][:10]) or "nothing"
        raise CheckpointMismatch(
            f"{path} is no classifier of digits: it holds {shown}; give points [M, {GRID * GRID}], "
            "coefficients [M, 10] and gamma []"
        )
    return DigitClassifier(tensors["points"], tensors["coefficients"], tensors["gamma"], device=device)
