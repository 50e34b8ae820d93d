"""Similarity of reconstructed images to their originals, pixel by pixel and as distributions; use of a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import (
    CHUNK_ROWS,
    Array,
    CommonAxes,
    Linearised,
    Moments,
    Normal,
    distance_of_parts,
    random_pairs,
    require_more_rows_than_features,
)

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
PEAK = 255.0
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


class CodebookUse(NamedTuple):
    """The use of a codebook's codes over a set of images."""

    fraction: float
    perplexity: float
    """Perplexity of the codes' frequencies, e to their entropy: the number of equally used codes with that entropy."""


def psnr(images: Tensor, references: Tensor) -> Tensor:  # images and references: [B, 3, H, W] uint8, to [B] float64, dB
    """Compute each image's peak signal-to-noise ratio, 10 log10(255² / MSE); infinity for equal images."""
    _check(images, references)
    errors = (images.double() - references.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / errors)


def ssim(images: Tensor, references: Tensor) -> Tensor:  # both [B, 3, H, W] uint8, to [B] float64, at most 1
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


def codebook_use(counts: Tensor) -> CodebookUse:  # [codes of the codebook], how often each occurs
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


def _window_means(maps: Tensor) -> Tensor:  # [B, C, H, W], to [B, C, H - 10, W - 10]
    """Compute Gaussian-weighted means. The window is a product, so that rows and columns are filtered in turn."""
    distance = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).view(1, 1, WINDOW, 1)
    flat = maps.flatten(0, 1)[:, None]
    rows = functional.conv2d(functional.conv2d(flat, weights), weights.transpose(2, 3))
    return rows.view(*maps.shape[:2], *rows.shape[2:])


def paired_frechet_shares(first: NDArray[np.floating], second: NDArray[np.floating]) -> Linearised:  # both [n, d]
    """Compute the distance between `first` and `second`, and every pair's share: a jackknife over pairs of rows.

    The share of pair i is the distance plus the deviation of (n - 1) (θ - θ_(i)) from its mean, with θ_(i) the distance
    without row i on both sides.

    θ_(i) is expanded to second order. In axes in which both covariances are diag(s) (`CommonAxes`), with u and v the
    two centred rows of a pair, z₁ and z₂ the same rows in the features, a = z₁ - z₂ and c = n/((n - 1)(n - 2)), and up
    to a constant,

        θ_(i) - θ ≈ -2 (μ₁ - μ₂)·a/(n - 1) + |a|²/(n - 1)² - c (|z₁|² + |z₂|² - |u|² - |v|²)
                    + ½ c² Σ_kl (u_k u_l - v_k v_l)² / (s_k + s_l)

    The last term is a square because tr (Σ₁Σ₂)^½ does not change where both sides change alike in those axes. The pairs
    of the surplus are ψ₂(i, j) = a_i·a_j + ½ Σ_kl (u_k u_l - v_k v_l)_i (u_k u_l - v_k v_l)_j / (s_k + s_l).

    Source: as `frechet_shares`; B. Efron, C. Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981.
    """
    if first.shape != second.shape:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise InvalidData(f"pairs need rows of one shape on both sides, not {shapes}")
    sides = [Moments.of(side) for side in (first, second)]
    require_more_rows_than_features(sides[0])
    normal1, normal2 = (Normal.of(moments.mean, moments.covariance) for moments in sides)
    axes, n = CommonAxes.of(normal1, normal2), len(first)
    pairing = _Pairing(n, normal1.mean - normal2.mean, axes)

    def pairs(rows: NDArray[np.integer] | slice) -> _Pairs:
        centred = first[rows] - normal1.mean, second[rows] - normal2.mean
        return _Pairs(centred, (centred[0] @ axes.first, centred[1] @ axes.second))

    starts = range(0, n, CHUNK_ROWS)
    changes = np.concatenate([pairing.changes(pairs(slice(start, start + CHUNK_ROWS))) for start in starts])
    crossed = np.concatenate([pairing.of_two(pairs(left), pairs(right)) for left, right in random_pairs(n)])
    value = distance_of_parts(pairing.gap, normal1, normal2, float(axes.spread.sum()))
    return Linearised(value, value - (n - 1) * (changes - changes.mean()), 2 * float(np.square(crossed).mean()) / n**2)


@dataclass(frozen=True, eq=False)
class _Pairs:
    rows: tuple[Array, Array]  # z₁ and z₂, [r, d] each
    inner: tuple[Array, Array]  # u and v, [r, rank] each

    @property
    def moved(self) -> Array:  # [r, d]
        return self.rows[0] - self.rows[1]


@dataclass(frozen=True, eq=False)
class _Pairing:
    """Change of a distance when a pair is removed, and the joint effect of two pairs."""

    n: int
    gap: Array  # [d], μ₁ - μ₂
    axes: CommonAxes

    def changes(self, pairs: _Pairs) -> Array:  # [r]
        c = self.n / ((self.n - 1) * (self.n - 2))
        moved = pairs.moved
        by_mean = -2 * (moved @ self.gap) / (self.n - 1) + np.square(moved).sum(1) / (self.n - 1) ** 2
        lengths = sum(np.square(side).sum(1) for side in pairs.rows)
        by_covariance = -c * (lengths - sum(np.square(side).sum(1) for side in pairs.inner))
        changes: Array = by_mean + by_covariance + c * c / 2 * self._curved(pairs, pairs)
        return changes

    def of_two(self, pairs: _Pairs, others: _Pairs) -> Array:  # [r], ψ₂
        crossed: Array = np.einsum("rk,rk->r", pairs.moved, others.moved)
        crossed += self._curved(pairs, others) / 2 / self.axes.shrinkage(self.n)
        return crossed

    def _curved(self, pairs: _Pairs, others: _Pairs) -> Array:  # [r]
        """Return Σ_kl (u_k u_l - v_k v_l) (u'_k u'_l - v'_k v'_l) / (s_k + s_l), from the products u_k u'_k etc."""
        total = np.zeros(len(pairs.rows[0]))
        for place, left in enumerate(pairs.inner):
            for other_place, right in enumerate(others.inner):
                product, sign = left * right, 1 if place == other_place else -1
                total += sign * np.einsum("rk,rk->r", product @ self.axes.curvature, product)
        return total
