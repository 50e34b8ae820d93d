"""Maps as rows of pixels with adjacent channels, the fast layout for convolutions on CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def to_rows(
    x: Tensor,  # [B, C, H, W]
) -> Tensor:  # [B, H, W, C], contiguous
    """Return a view of a map that is channels last in memory, else a copy."""
    return x.permute(0, 2, 3, 1).contiguous()


def from_rows(
    rows: Tensor,  # [B, H, W, C]
) -> Tensor:  # [B, C, H, W], channels last in memory
    return rows.permute(0, 3, 1, 2)


def bands(height: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of nearly equal bands of at most `most` rows."""
    count = -(-height // most)
    for index in range(count):
        yield height * index // count, height * (index + 1) // count


def by_taps(
    combinations: Tensor,  # [n, 9]
    weight: Tensor,  # [C', C, 3, 3]
) -> Tensor:  # [n, C', C]
    """Return the weights of n products, each a combination of the nine taps."""
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # [C', 9, C]
    return torch.matmul(combinations.to(taps), taps).transpose(0, 1)
