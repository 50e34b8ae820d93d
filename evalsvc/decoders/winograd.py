"""3x3 convolutions by Winograd's F(2x2, 3x3): 16 products per 2x2 outputs instead of 36.

Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4.1. The function
is the same, with rounding errors of the same size. The weights are transformed at each call, which costs a few percent.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.decoders.channels_last import bands, by_taps, from_rows, to_rows

MIN_CHANNELS = 128
"""Smallest number of input and output channels. Below, moving the transformed maps costs more than the saved products.
"""
MIN_PIXELS = 256
"""Smallest number of input pixels. Below, transforming the weights costs more."""
WORKSPACE = 4 << 20
"""Approximate bytes of transformed input at a time: with 16 MB, a network takes a tenth longer."""

TAPS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
"""The paper's G, which transforms three taps into four."""


def pays(
    x: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [C', C, 3, 3]
) -> bool:
    """Return whether `convolve` applies and is faster. On CUDA, cuDNN chooses such a kernel itself."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and x[:, 0].numel() >= MIN_PIXELS
        and not x.shape[2] % 2
        and not x.shape[3] % 2
    )


def convolve(
    x: Tensor,  # [B, C, H, W], H and W even
    weight: Tensor,  # [C', C, 3, 3]
    bias: Tensor,  # [C']
) -> Tensor:  # [B, C', H, W], channels last in memory
    """Convolve with one pixel of zero padding."""
    taps = by_taps(torch.kron(TAPS, TAPS), weight)  # [16, C', C]
    rows = to_rows(x)
    batch, height, width, channels = rows.shape
    out = rows.new_empty(batch, height, width, len(weight))
    most = _rows_per_band(channels, width, x.element_size())
    for image, result in zip(rows, out, strict=True):
        for start, stop in bands(height // 2, most):
            _tiles(_with_border(image, 2 * start - 1, 2 * stop + 1), taps, bias, result[2 * start : 2 * stop])
    return from_rows(out)


def workspace(channels: int, out_channels: int, height: int, width: int, itemsize: int) -> int:
    """Return the bytes that `convolve` holds in addition to its input and output."""
    rows = min(height // 2, _rows_per_band(channels, width, itemsize))
    return itemsize * (16 * out_channels * channels + rows * width * (12 * channels + 12 * out_channels))


def _rows_per_band(channels: int, width: int, itemsize: int) -> int:
    return max(1, WORKSPACE // (8 * channels * width * itemsize))  # of tiles


def _with_border(
    image: Tensor,  # [H, W, C]
    first: int,
    stop: int,
) -> Tensor:  # [stop - first, W, C]
    """Return rows of the image, with zeros outside the image."""
    inside = image[max(first, 0) : stop]
    above, below = max(-first, 0), max(stop - len(image), 0)
    return functional.pad(inside, (0, 0, 0, 0, above, below)) if above or below else inside


def _tiles(
    rows: Tensor,  # [2n + 2, W, C]
    taps: Tensor,  # [16, C', C]
    bias: Tensor,  # [C']
    out: Tensor,  # [2n, W, C']
) -> None:
    """Compute n rows of 2x2 tiles: the paper's Y = Aᵀ[(GgGᵀ) ⊙ (BᵀdB)]A, one dimension after the other."""
    count, half = len(out) // 2, rows.shape[1] // 2
    products = torch.bmm(_transformed(rows).flatten(1, 2), taps.transpose(1, 2))
    products[5] += bias  # the product that reaches each of the four outputs once
    planes = products.view(4, 4, count, half, -1)
    columns = planes.new_empty(2, *planes.shape[1:])
    _outputs(planes, columns.unbind())
    targets = out.view(count, 2, half, 2, -1)
    for index, row in enumerate(columns):
        _outputs(row, targets[:, index].unbind(2))


def _transformed(
    rows: Tensor,  # [2n + 2, W, C]
) -> Tensor:  # [16, n, W / 2, C]
    """Return the paper's BᵀdB of tiles of 4x4 that overlap by two."""
    pairs = rows.view(-1, 2, *rows.shape[1:])
    count, half = len(pairs) - 1, rows.shape[1] // 2
    # Pad with a column of zeros on either side, which rows transform to zeros.
    by_row = rows.new_empty(4, count, rows.shape[1] + 2, rows.shape[2])
    by_row[:, :, 0] = by_row[:, :, -1] = 0
    _inputs(pairs.unbind(1), by_row[:, :, 1:-1].unbind())
    tiles = rows.new_empty(4, 4, count, half, rows.shape[2])
    columns = by_row.view(4, count, half + 1, 2, -1).movedim(2, 0)  # [W / 2 + 1, 4, n, 2, C]
    _inputs(columns.unbind(3), tiles.permute(1, 3, 0, 2, 4).unbind())
    return tiles.flatten(0, 1)


def _inputs(pairs: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> None:
    """Compute Bᵀd of tiles of four, given as first and second of each pair, along the first dimension."""
    first, second = pairs
    torch.sub(first[:-1], first[1:], out=out[0])
    torch.add(second[:-1], first[1:], out=out[1])
    torch.sub(first[1:], second[:-1], out=out[2])
    torch.sub(second[:-1], second[1:], out=out[3])


def _outputs(products: Tensor, out: tuple[Tensor, ...]) -> None:
    """Compute Aᵀm: two outputs of four products, along the first dimension."""
    torch.add(products[0], products[1], out=out[0]).add_(products[2])
    torch.sub(products[1], products[2], out=out[1]).sub_(products[3])
