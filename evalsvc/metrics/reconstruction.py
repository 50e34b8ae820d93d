"""Similarity of reconstructed images to their originals, and the used part of a codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InvalidData

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
PEAK = 255.0
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


class CodebookUse(NamedTuple):
    """The use of a codebook's codes over a set of images."""

    fraction: float
    """Share of the codebook's codes that occur."""
    perplexity: float
    """Perplexity of the codes' frequencies, e to their entropy: the number of equally used codes with that entropy."""


def psnr(
    images: Tensor,  # [B, 3, H, W] uint8
    references: Tensor,  # [B, 3, H, W] uint8
) -> Tensor:  # [B] float64, dB
    """Compute the peak signal-to-noise ratio of each image, 10 log10(255² / MSE) over all its pixels and channels.

    Infinity for equal images. Raises InvalidData unless both are uint8 batches of one shape.
    """
    _check(images, references)
    errors = (images.double() - references.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / errors)


def ssim(
    images: Tensor,  # [B, 3, H, W] uint8
    references: Tensor,  # [B, 3, H, W] uint8
) -> Tensor:  # [B] float64, at most 1
    """Compute the structural similarity of each image: the mean over channels and windows within the image.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity"
    (IEEE TIP 13(4), 2004), equation 13, with its Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = 0.01 and K2 = 0.03,
    and covariances without Bessel's correction. Raises InvalidData as `psnr` does, and for images below 11 x 11.
    """
    _check(images, references)
    if min(images.shape[2:]) < WINDOW:
        raise InvalidData(f"SSIM needs images of {WINDOW}x{WINDOW} pixels or more, not {list(images.shape[2:])}")
    x, y = images.double(), references.double()
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, square_x, square_y, product = _window_means(maps).chunk(5, dim=1)
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def codebook_use(
    counts: Tensor,  # [codes of the codebook], how often each occurs
) -> CodebookUse:
    """Compute the used part of a codebook from counts that shards add up. Raises InvalidData where all counts are 0."""
    total = counts.sum()
    if not total:
        raise InvalidData("codebook use needs at least one code, and no code was counted; give images")
    frequencies = counts[counts > 0].double() / total
    entropy = -(frequencies * frequencies.log()).sum()
    return CodebookUse(len(frequencies) / len(counts), float(entropy.exp()))


def _check(images: Tensor, references: Tensor) -> None:
    kinds = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (images, references)]
    if images.shape != references.shape or images.dim() != 4 or {images.dtype, references.dtype} != {torch.uint8}:
        raise InvalidData(f"images and references must be uint8 [B, 3, H, W] of one shape, not {' and '.join(kinds)}")


def _window_means(
    maps: Tensor,  # [B, C, H, W]
) -> Tensor:  # [B, C, H - 10, W - 10]
    """Compute Gaussian-weighted means. The window is a product, so that rows and columns are filtered in turn."""
    distance = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).view(1, 1, WINDOW, 1)
    flat = maps.flatten(0, 1)[:, None]
    rows = functional.conv2d(functional.conv2d(flat, weights), weights.transpose(2, 3))
    return rows.view(*maps.shape[:2], *rows.shape[2:])
