"""Nearest upsampling by 2 with the 3x3 convolution after it, as nine products on the small map instead of 36.

An output depends on two of the small map's rows, which the three taps cover. With weights w₀, w₁, w₂ of the rows above,
at and below, S their sum and d[i] = x[i] - x[i - 1], the two rows of outputs that lie on row i are

    S x[i] - w₀ d[i]   and   S x[i] + w₂ d[i + 1]

so S x[i] is shared. Columns work alike: 3 x 3 products, of the map, of its differences along either side, and of the
differences of these. The usual folding, four convolutions of 2x2, has sixteen products.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.precision import TF32Conv2d

WORKSPACE = 2 << 20
"""Approximate bytes of the small map that are processed at a time."""

ALONG = torch.tensor([[1, 1, 1], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
"""Combinations of taps along one side: for x, for the difference to the row before, and for that to the row after."""
ORDER = [0, 3, 6, 1, 2, 4, 5, 7, 8]
"""Order of the nine products: the map; differences of rows, per row of outputs; differences of columns; of both."""


def pays(x: Tensor, convolution: nn.Module) -> bool:
    """Return whether nine products in float32 are faster than the convolution, which TF32 multiplies faster."""
    if isinstance(convolution, TF32Conv2d):
        return False
    return x.dtype in (torch.float32, torch.float64) and not torch.is_grad_enabled()


def upsample_and_convolve(
    x: Tensor,  # [B, C, h, w]
    weight: Tensor,  # [C', C, 3, 3]
    bias: Tensor,  # [C']
) -> Tensor:  # [B, C', 2h, 2w], channels last in memory
    """Convolve the upsampled map with one pixel of zero padding."""
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # [C', 9, C]
    taps = torch.matmul(torch.kron(ALONG, ALONG)[ORDER].to(taps), taps).transpose(0, 1).contiguous()  # [9, C', C]
    rows = x.permute(0, 2, 3, 1).contiguous()
    batch, height, width, channels = rows.shape
    out = rows.new_empty(batch, height, 2, width, 2, len(weight))
    most = _rows_per_band(channels, width, x.element_size()) if x.device.type == "cpu" else height
    count = -(-height // most)
    bounds = [height * index // count for index in range(count + 1)]  # of nearly equal bands of at most `most` rows
    for image, result in zip(rows, out, strict=True):
        padded = functional.pad(image, (0, 0, 1, 1, 1, 1))
        for start, stop in pairwise(bounds):
            _phases(padded[start : stop + 2], taps, bias, result[start:stop])
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def workspace(channels: int, out_channels: int, height: int, width: int, itemsize: int) -> int:
    """Return the bytes that `upsample_and_convolve` holds on a CPU in addition to its input and output."""
    rows = min(height, _rows_per_band(channels, width, itemsize))
    padded = (height + 2) * (width + 2) * channels
    return itemsize * (18 * channels * out_channels + padded + rows * width * (3 * channels + 10 * out_channels))


def _rows_per_band(channels: int, width: int, itemsize: int) -> int:
    return max(1, WORKSPACE // (channels * width * itemsize))


def _phases(
    rows: Tensor,  # [n + 2, w + 2, C]
    taps: Tensor,  # [9, C', C]
    bias: Tensor,  # [C']
    out: Tensor,  # [n, 2, w, 2, C']
) -> None:
    here = rows[1:-1, 1:-1]
    down = rows[1:] - rows[:-1]  # [n + 1, w + 2, C]
    across = rows[1:-1, 1:] - rows[1:-1, :-1]  # [n, w + 1, C]
    both = down[:, 1:] - down[:, :-1]  # [n + 1, w + 1, C]
    height, width = here.shape[:2]
    shared = functional.linear(here, taps[0], bias)
    by_row = _products(down[:, 1:-1], taps[1:3])
    by_column = _products(across, taps[3:5])
    by_both = _products(both, taps[5:9])
    for a in range(2):
        of_row = shared + by_row[a : height + a, :, a]
        for b in range(2):
            target = torch.add(of_row, by_column[:, b : width + b, b], out=out[:, a, :, b])
            target.add_(by_both[a : height + a, b : width + b, 2 * a + b])


def _products(maps: Tensor, taps: Tensor) -> Tensor:  # [H, W, C] · [n, C', C] → [H, W, n, C']
    return functional.linear(maps, taps.flatten(0, 1)).view(*maps.shape[:2], len(taps), -1)
