"""LPIPS: the distance of two images in the features of VGG-16, with weights that were fitted to human judgements.

Source: Zhang et al., arXiv 1801.03924; version 0.1 of the authors' package `lpips`, with `net="vgg"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.tensors import copied, is_plain, listed, tensor_digest
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, InvalidData
from evalsvc.precision import full_precision

FILES = ("vgg16-397923af.pth", "vgg.pth")
"""Files of torchvision's VGG-16, and of the package's weights."""
STAGES = ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)), (512, (24, 26, 28)))
"""Channels, and places in torchvision's network, of the convolutions up to each place where features are compared."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1], by channel, as in the package


class LPIPS:
    """Distance of each image to its reference, in full float32."""

    def __init__(self, tensors: Mapping[str, Tensor], device: str) -> None:
        self._tensors, self.device = tensors, torch.device(device)
        self.digest = tensor_digest(tensors)

    @classmethod
    def from_path(cls, path: Path, *, device: str = "cpu") -> Self:
        """Load a folder with the two FILES. Raises CheckpointError and NonFinite."""
        loaded = {name: tensor for file in FILES for name, tensor in read_weights(path / file).tensors.items()}
        shapes, inner = dict[str, list[int]](), 3
        for stage, (channels, places) in enumerate(STAGES):
            shapes[f"lin{stage}.model.1.weight"] = [1, channels, 1, 1]
            for place in places:
                shapes |= {f"features.{place}.weight": [channels, inner, 3, 3], f"features.{place}.bias": [channels]}
                inner = channels
        wrong = [n for n in shapes if n in loaded and (list(loaded[n].shape) != shapes[n] or not is_plain(loaded[n]))]
        if problems := listed("missing", sorted(shapes.keys() - loaded)) + listed("wrongly shaped", wrong):
            raise CheckpointMismatch(
                f"{path} has other networks than LPIPS's in {' and '.join(FILES)}; {'; '.join(problems)}; give "
                "torchvision's VGG-16 and the weights v0.1 of the package lpips"
            )
        return cls(copied(path, ((name, loaded[name]) for name in shapes), torch.float32, device), device)

    @torch.inference_mode()
    def __call__(self, images: Tensor, references: Tensor) -> Tensor:  # both [B, 3, H, W] uint8, to [B] float32
        if min(images.shape[2:]) < 16:
            raise InvalidData(f"LPIPS needs images of 16x16 pixels or more, not {[*images.shape[2:]]}; remove `lpips`")
        with full_precision(self.device):
            pairs = zip(*(torch.split(side, 8) for side in (images, references)), strict=True)  # to save memory
            return torch.cat([self._distances(*pair) for pair in pairs])

    def _distances(self, images: Tensor, references: Tensor) -> Tensor:
        total = torch.zeros(len(images), device=self.device)
        sides = zip(self._features(images), self._features(references), strict=True)
        for stage, (first, second) in enumerate(sides):
            squares = (first - second) ** 2
            total += functional.conv2d(squares, self._tensors[f"lin{stage}.model.1.weight"]).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> Iterator[Tensor]:  # of unit length over channels, [B, C, h, w] of each stage
        shift, scale = torch.tensor((SHIFT, SCALE), device=self.device)[..., None, None]
        x = (images.to(self.device).float() / 127.5 - 1 - shift) / scale
        for stage, (_, places) in enumerate(STAGES):
            x = functional.max_pool2d(x, 2) if stage else x
            for place in places:
                weight, bias = (self._tensors[f"features.{place}.{part}"] for part in ("weight", "bias"))
                x = functional.conv2d(x, weight, bias, padding=1).relu_()
            yield x / ((x**2).sum(1, keepdim=True).sqrt() + 1e-10)
