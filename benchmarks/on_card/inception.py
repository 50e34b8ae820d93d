"""Whether FID's Inception finds the same features on a device as on a CPU, and the same distances between images.

The weights are drawn: of the published shapes, scaled so that every layer's outputs are as large as its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.features.inception import Inception, _Network
from evalsvc.features.inception_weights import PARTS
from evalsvc.metrics.frechet import Moments, frechet_distance
from on_card.kit import Kit, Row, at_most, figure
from on_card.tiny_models import few_threads, relative_error

TAPS = (64, 2048)
ERROR = 1e-5
"""Relative, of features and of distances."""


def run(kit: Kit) -> Iterator[Row]:
    """Extract two sets of images on the device and on the CPU, in both resizes, and compare."""
    with few_threads(kit) if kit.small else nullcontext():
        yield from _compare(kit)


def _compare(kit: Kit) -> Iterator[Row]:
    count, side = (2, 64) if kit.small else (48, 256)
    sets = draw_images(count, side)
    tensors = draw_trunk()
    touched = dict(tensors)
    touched["Conv2d_1a_3x3.conv.weight"] = kit.touched(touched["Conv2d_1a_3x3.conv.weight"])
    here = Inception(touched, device=str(kit.device))
    on_cpu = Inception(tensors)
    yield figure("images", 2 * count, f"of {side}x{side}")
    for resize in here.resizes:
        # The stem takes a tenth of the work: on two slow cores the rest is done once.
        taps = TAPS[:1] if kit.small and resize != here.resizes[0] else TAPS
        found, expected = ([side.features(images, resize, taps) for images in sets] for side in (here, on_cpu))
        for tap in taps:
            ours, theirs = ([features[tap].cpu() for features in side] for side in (found, expected))
            error = relative_error(torch.cat(ours), torch.cat(theirs))
            yield at_most(f"{resize}, {tap} features: relative error", error, ERROR)
            # Roots of matrices of 2,048 rows take a CPU seconds: they are drawn for one resize.
            if tap == TAPS[0] or (resize == here.resizes[0] and not kit.small):
                yield from _distances(f"{resize}, {tap} features", ours, theirs)
        kit.release()


def _distances(name: str, ours: list[Tensor], theirs: list[Tensor]) -> Iterator[Row]:
    here, on_cpu = _distance(*ours), _distance(*theirs)
    yield figure(f"{name}: distance of the two sets", here)
    yield at_most(f"{name}: distance, to the CPU's", abs(here / on_cpu - 1), ERROR)


def _distance(left: Tensor, right: Tensor) -> float:
    one, other = Moments.of(left.numpy()), Moments.of(right.numpy())
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def draw_images(count: int, side: int) -> tuple[Tensor, Tensor]:  # each [count, 3, side, side] uint8, on the CPU
    """Return two sets of images, coarse patterns under fine noise, the second brighter and smoother."""
    generator = torch.Generator().manual_seed(0)

    def draw(level: float, noise: float) -> Tensor:
        coarse = torch.randn(count, 3, 8, 8, generator=generator) * 50 + level
        fine = torch.randn(count, 3, side, side, generator=generator) * noise
        return (functional.interpolate(coarse, (side, side)) + fine).round().clamp(0, 255).to(torch.uint8)

    return draw(110, 20), draw(140, 5)


def draw_trunk() -> Mapping[str, Tensor]:
    """Return weights of the trunk by torch-fidelity's names, the same everywhere, without the classifier."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in _Network().state_dict().items() if name.endswith(".weight")}
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = (
            torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5,
            *(0.1 * torch.randn(3, shape[0], generator=generator) + torch.tensor([[1.0], [0.0], [0.0]])),
            0.8 + 0.4 * torch.rand(shape[0], generator=generator),
        )
        tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in zip(PARTS, values, strict=True)}
    return tensors
