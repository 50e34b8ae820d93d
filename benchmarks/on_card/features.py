"""FID's Inception in images a second, with drawn weights: its own are too large to carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from side_by_side import interleaved, medians, ratios
from torch import Tensor

from evalsvc.features.inception import Inception
from evalsvc.precision import full_precision
from on_card.kit import Kit, Row, at_most, figure, left_out
from on_card.rates import product_rate
from on_card.twins import draw_inception, missing

OURS, THEIRS = "evalsvc", "torch-fidelity"
OPERATIONS = 11.4e9
"""Of the convolutions for one image: two for each product and sum."""
TAP = 2_048
ERROR = 1e-4
"""Relative L2; TF32's 10 bits give 1e-3."""
TURNS = 3

Side = Callable[[Tensor], Tensor]


def run(kit: Kit) -> Iterator[Row]:
    """Compare features with the CPU's by either resize, and with the peer's where it is, then time batches."""
    tensors = draw_inception()
    plain = Inception(tensors)
    name = "Mixed_6a.branch3x3.conv.weight"
    ours = Inception(tensors | {name: kit.touched(tensors[name])}, device=str(kit.device))
    images = _images(1 if kit.small else 8, 64 if kit.small else 256)
    for resize in plain.resizes:
        error = _error(_features(ours, images.to(kit.device), resize), _features(plain, images, resize))
        yield at_most(f"features against the CPU's, {resize}, relative", error, ERROR)
    sides: dict[str, Side] = {resize: lambda images, by=resize: _features(ours, images, by) for resize in ours.resizes}
    lacking = missing("torch_fidelity", "cleanfid")
    if lacking:
        yield left_out(f"against {THEIRS}'s extractor", lacking)
    else:
        sides[THEIRS] = _their_side(tensors, kit.device)
        error = _error(sides[THEIRS](images.to(kit.device)), _features(ours, images.to(kit.device), "tf1-bilinear"))
        yield at_most(f"features against {THEIRS}'s, relative", error, ERROR)
    for batch in (1,) if kit.small else (64, 256):
        yield from _time(kit, batch, sides)
        kit.release()


def _time(kit: Kit, batch: int, sides: dict[str, Side]) -> Iterator[Row]:
    images = _images(batch, 256).to(kit.device)
    for side in sides.values():  # warm-up
        side(images)
    turns = 1 if kit.small else TURNS
    times = interleaved({name: lambda side=side: side(images) for name, side in sides.items()}, turns)
    for name, taken in medians(times).items():
        share = batch * OPERATIONS / taken / product_rate(kit.device, torch.float32)
        yield figure(f"batch {batch}, {name}: images/s", batch / taken, "images/s", seconds=times[name])
        # A product's rate: that of a convolution is another, and resizing is not counted.
        yield figure(f"batch {batch}, {name}: operations of product rate", share)
    if THEIRS in times:
        ratio = ratios({name: times[name] for name in (THEIRS, "tf1-bilinear")}, "tf1-bilinear")[THEIRS]
        yield figure(f"batch {batch}: {THEIRS}'s time over ours", ratio, "x")


def _features(extractor: Inception, images: Tensor, resize: str) -> Tensor:
    return extractor.features(images, resize, (TAP,))[TAP]


def _their_side(tensors: dict[str, Tensor], device: torch.device) -> Side:
    from features import torch_fidelitys

    network = torch_fidelitys(tensors).to(device)

    def features(images: Tensor) -> Tensor:
        with full_precision(device), torch.inference_mode():
            found: Tensor = network(images)[0]
            return found

    return features


def _images(count: int, side: int) -> Tensor:  # [count, 3, side, side] uint8
    """Return noise with structure: coarse squares under fine ones."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randint(0, 192, (count, 3, side // 16, side // 16), generator=generator)
    fine = torch.randint(0, 64, (count, 3, side, side), generator=generator)
    return (coarse.repeat_interleave(16, 2).repeat_interleave(16, 3) + fine).to(torch.uint8)


def _error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())
