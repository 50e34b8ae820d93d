"""Checks that a device computes in float32 when asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.precision import full_precision
from evalsvc.sampling.noise import stream_keys, uniform
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import Golden

INNER = 1024
"""Number of products in a sum; sums are about √INNER."""
FULL = 1e-3
"""Tolerance: sums of INNER products in float32 are off by about 1e-4, in TF32 by 1e-2, in bfloat16 by 1e-1."""


def verify_products(golden: Golden) -> Iterator[Agreement]:
    """Compare a matrix product and a convolution in float32 with float64 on the CPU.

    Cards and newer CPUs compute both in fewer bits if a library or an environment variable permits it.
    """
    random = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(256, INNER, generator=random) for _ in range(2))
    yield _product("float32 matrix product", golden, lambda first, second: first @ second.T, rows, columns)
    images = torch.randn(8, 64, 32, 32, generator=random)
    kernels = torch.randn(64, 64, 4, 4, generator=random)
    yield _product("float32 convolution", golden, functional.conv2d, images, kernels)


def _product(
    quantity: str, golden: Golden, compute: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> Agreement:
    device = torch.device(golden.device)
    with full_precision(device):
        product = compute(first.to(device), second.to(device)).double().cpu()
    expected = compute(first.double(), second.double())
    note = f"{INNER} products per sum; TF32 would differ by 1e-2"
    return Agreement.of_arrays(quantity, "float64 on the CPU", product, expected, FULL, note)


def verify_noise(golden: Golden) -> Iterator[Agreement]:
    """Compare uniform noise with a plain implementation in Python's integers: the bits are equal on every device."""
    keys = stream_keys(7, ["digit-10"], torch.device(golden.device))
    noise = torch.cat([uniform(keys, position, 64) for position in (0, 63)])
    expected = golden.tensors("sampling")["uniform"]
    yield Agreement.of_arrays(
        "noise of 128 codes", "golden, SplitMix64 in Python", noise.cpu(), expected, 0.0, "integers: every bit is equal"
    )
