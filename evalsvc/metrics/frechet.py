"""Fréchet distance between two sets of features, each treated as a normal distribution: FID on Inception's features.

Features are reduced to moments, which add up over shards, so that no process holds all features.

A jackknife counts the variance of pairs of items twice. Write a statistic of n independent items as T = θ + Σ ψ₁(x_i)
/ n + Σ_{i≠j} ψ₂(x_i, x_j) / n², with E ψ₂(x, ·) = 0. With σ₁² = E ψ₁² and σ₂² = E ψ₂(x, x')² of two independent items,

    variance of T                          σ₁²/n + 2 σ₂²/n²
    mean of the jackknife's estimate of it  σ₁²/n + 4 σ₂²/n²

The distances between two distributions have ψ₁ = 0 where the distributions are equal, so that a jackknife's standard
error is √2 times too large there. An estimate of σ₂² removes the surplus 2 σ₂²/n².

Source: B. Efron, C. Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981, equation 2.4 ff.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalsvc.errors import InvalidData, NonFinite

Array = NDArray[np.float64]

EPSILON = float(np.finfo(np.float64).eps)

CHUNK_ROWS = 4096
"""Number of feature rows with a float64 copy in memory at a time."""

PAIRS = 4096
"""Number of random pairs of rows that estimate the variance of pairs, to within some percent."""
CHUNK_PAIRS = 2048

CORRECTED = 4
"""Images per feature from which the variance of pairs of images is counted once for a Fréchet distance. With fewer
images, the error of the expansion of the distance is as large; counted twice, differences are detected too seldom."""

LEAST = 0.5
"""Smallest share of the jackknife's variance that remains: the surplus is half of the variance where ψ₁ = 0."""


class Gaussian(Protocol):
    """Mean and covariance of a set of features, which a distance needs."""

    @property
    def n(self) -> int | None: ...

    @property
    def mean(self) -> Array: ...  # [d]

    @property
    def covariance(self) -> Array: ...  # [d, d]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over features, in float64, so that merged shards equal one pass to 1e-12."""

    n: int
    sum: Array  # [d]
    outer: Array  # [d, d], the sum of x xᵀ

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:  # [n, d]
        """Return the sums of `features`; n may be 0."""
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2:
            raise InvalidData(f"features have the shape {list(rows.shape)}; give one row per image: [n, d]")
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise NonFinite(
                f"{int((~finite).sum())} of {len(rows)} feature rows hold NaN or infinity, first row "
                f"{int(np.argmin(finite))}; check the images of these rows"
            )
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        _require_same_size(self.sum, other.sum)
        return Moments(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    def __sub__(self, group: Moments) -> Moments:
        """Return the moments without `group`, a part of the set. Raises InvalidData if the group is the larger one."""
        _require_same_size(self.sum, group.sum)
        if group.n > self.n:
            raise InvalidData(f"a group of {group.n} cannot be removed from {self.n}; give a part of the set")
        return Moments(self.n - group.n, self.sum - group.sum, self.outer - group.outer)

    @property
    def mean(self) -> Array:
        """Mean of the features, [d]. Raises InvalidData for an empty set."""
        if self.n < 1:
            raise InvalidData("an empty set of features has no mean; give at least 2 images")
        return self.sum / self.n

    @property
    def covariance(self) -> Array:
        """Unbiased covariance of the features (ddof=1), [d, d]. Raises InvalidData for n < 2."""
        if self.n < 2:
            raise InvalidData(f"the covariance of {self.n} feature rows is not defined; give at least 2 images")
        mean = self.mean
        covariance = (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1)
        return (covariance + covariance.T) / 2


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:  # [d], [d, d]
    """Compute |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), also where the covariances have no full rank (n ≤ d).

    With Σ₂ = A Aᵀ the eigenvalues of Σ₁Σ₂ are those of AᵀΣ₁A, which is symmetric, and the last trace is the sum of the
    roots of the eigenvalues. Where both covariances have full rank, A is Cholesky's factor. Otherwise both are factored
    by eigenvectors, without those whose eigenvalue is rounding, and the roots are the singular values of A₁ᵀA₂.

    Source: D. C. Dowson, B. V. Landau, The Fréchet distance between multivariate normal distributions, J. Multivariate
    Analysis 12 (1982); as a metric of images: M. Heusel et al., arXiv 1706.08500.
    """
    first, second = Normal.of(mean1, cov1), Normal.of(mean2, cov2)
    _require_same_size(first.mean, second.mean)
    if first.cholesky is None or second.cholesky is None:
        cross = float(np.linalg.svd(first.spectral.T @ second.spectral, compute_uv=False).sum())
    else:
        product = second.cholesky.T @ first.covariance @ second.cholesky
        cross = float(np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0)).sum())
    return distance_of_parts(first.mean - second.mean, first, second, cross)


@dataclass(frozen=True, eq=False)
class Linearised:
    """A distance as a mean over images, to first order."""

    value: float
    shares: Array
    """Share of every image in the distance, by the jackknife, [n]. The mean is `value`."""
    surplus: float
    """Amount by which the variance of `shares` over n exceeds that of the distance."""


def frechet_shares(features: NDArray[np.floating], reference: Gaussian) -> Linearised:  # features [n, d]
    """Compute the distance of `features` to `reference` and every row's share: a jackknife from one decomposition.

    The share of row i is the distance plus the deviation of (n - 1) (θ - θ_(i)) from its mean, with θ_(i) the distance
    without the row. The mean of the shares is the distance; their variance over n is that of the distance plus the
    surplus, with the reference treated as fixed. Shares of two sets on the same prompts and noise can be subtracted row
    by row.

    θ_(i) is expanded to second order. With z = x - μ₁, Σ₂ = A Aᵀ, AᵀΣ₁A = U diag(s²) Uᵀ and u = diag(s)^-½ UᵀAᵀ z,
    whose covariance is diag(s), removing a row changes μ₁ by -z/(n - 1), Σ₁ by Σ₁/(n - 2) - c zzᵀ and the covariance of
    u by E = diag(s)/(n - 2) - c uuᵀ, c = n/((n - 1)(n - 2)); and

        θ_(i) - θ ≈ 2 (μ₁ - μ₂)·Δμ + |Δμ|² + tr ΔΣ - tr E + ½ Σ_kl E_kl² / (s_k + s_l)

    The first order alone would give an error that is up to a third too large where the distance is near zero or n is
    near d.

    The surplus is 2 σ₂²/n², with σ₂² the mean square over PAIRS random pairs of rows of

        ψ₂(x, x') = z·z' + ½ Σ_kl (u_k u_l - s_k δ_kl)(u'_k u'_l - s_k δ_kl) / (s_k + s_l) / (1 - d/n)

    Source: L. Jaeckel, The infinitesimal jackknife, Bell Laboratories MM 72-1215-11, 1972; the derivatives of tr M^½
    from its divided differences, R. Bhatia, Matrix Analysis, 1997, section V.3.
    """
    moments = Moments.of(features)
    require_more_rows_than_features(moments)
    first, second = (Normal.of(side.mean, side.covariance) for side in (moments, reference))
    axes = CommonAxes.of(first, second)
    gap, n = first.mean - second.mean, moments.n
    removal = _Removal(n, gap, axes)
    parts = (np.asarray(features[start : start + CHUNK_ROWS]) for start in range(0, n, CHUNK_ROWS))
    changes = np.concatenate([removal.changes(part - first.mean) for part in parts])
    value = distance_of_parts(gap, first, second, float(axes.spread.sum()))
    couples = ((features[rows] - first.mean for rows in pair) for pair in random_pairs(n))
    pairs = np.concatenate([removal.of_pair(*couple) for couple in couples])
    surplus = 2 * float(np.square(pairs).mean()) / n**2
    return Linearised(value, value - (n - 1) * (changes - changes.mean()), surplus)


def require_more_rows_than_features(moments: Moments) -> None:
    """Raise InvalidData unless there are more rows than features, which the derivatives of a distance need."""
    n, d = moments.n, len(moments.sum)
    if n <= max(d, 2):
        raise InvalidData(f"{n:,} images are too few for a distance on {d:,} features; give more images than features")


def random_pairs(n: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Draw PAIRS pairs of different rows by a fixed seed, and yield them CHUNK_PAIRS at a time."""
    random = np.random.default_rng(0)
    for start in range(0, PAIRS, CHUNK_PAIRS):
        size = min(CHUNK_PAIRS, PAIRS - start)
        left = random.integers(0, n, size)
        yield left, (left + random.integers(1, n, size)) % n


def without_surplus(shares: Array, surplus: float) -> Array:  # shares [n], to [n]
    """Move shares towards their mean by one factor, so that their variance over n is smaller by `surplus`.

    Shares of two checkpoints on the same prompts can still be subtracted: where both distances are near zero, half of
    the jackknife's variance of their difference is surplus too, and a distance far from zero has a factor near one.
    """
    if len(shares) < 2:
        return shares
    variance = float(shares.var(ddof=1)) / len(shares)
    if variance == 0:
        return shares
    centre = shares.mean()
    moved: Array = centre + math.sqrt(max(LEAST, 1 - surplus / variance)) * (shares - centre)
    return moved


def counted_once(distance: Linearised, dimensions: int) -> Array:  # [n]
    """Return the shares with the distance's variance; unchanged below `CORRECTED` images per feature."""
    enough = len(distance.shares) >= CORRECTED * dimensions
    return without_surplus(distance.shares, distance.surplus) if enough else distance.shares


@dataclass(frozen=True, eq=False)
class CommonAxes:
    """Axes in which two covariances are the same diagonal matrix, diag(s)."""

    spread: Array  # [rank], s: the roots of the eigenvalues of Σ₁Σ₂, without those that are rounding
    first: Array  # [d, rank], from the first set's centred features to the axes
    second: Array  # [d, rank], from the second's

    @classmethod
    def of(cls, first: Normal, second: Normal) -> CommonAxes:
        """Return the axes A U diag(s)^-½ and A^-ᵀ U diag(s)^½, with Σ₂ = A Aᵀ and AᵀΣ₁A = U diag(s²) Uᵀ."""
        _require_same_size(first.mean, second.mean)
        values, vectors = np.linalg.eigh(second.factor.T @ first.covariance @ second.factor)
        kept = _above_rounding(values)
        spread = np.sqrt(values[kept])
        to_first, to_second = second.factor @ vectors[:, kept], second.inverse_factor(vectors[:, kept])
        return cls(spread, to_first / np.sqrt(spread), to_second * np.sqrt(spread))

    @cached_property
    def curvature(self) -> Array:
        """Second derivative of a distance by the entries of a covariance, 1 / (s_k + s_l), [rank, rank]."""
        curvature: Array = 1 / np.add.outer(self.spread, self.spread)
        return curvature

    def shrinkage(self, n: int) -> float:
        """Return the factor by which products of different rows are too small in axes that come from the same n rows.

        In whitened axes, products of a row with itself take the share rank/n of the sum of squared products of rows.
        """
        return 1 - len(self.spread) / n


@dataclass(frozen=True, eq=False)
class _Removal:
    """Change of a distance when a row is removed, and the joint effect of two rows; see `frechet_shares`."""

    n: int
    gap: Array  # [d], μ₁ - μ₂
    axes: CommonAxes

    def changes(self, rows: Array) -> Array:  # [r, d], centred, to [r], up to a constant
        more, c = 1 / (self.n - 2), self.n / ((self.n - 1) * (self.n - 2))
        lengths, squares = np.square(rows).sum(1), np.square(rows @ self.axes.first)
        by_mean = -2 * (rows @ self.gap) / (self.n - 1) + lengths / (self.n - 1) ** 2
        by_covariance = -c * (lengths - squares.sum(1))
        # E² = (more diag(s) - c uuᵀ)², entry by entry, without the terms that are equal for every row.
        crossed = c * c * np.einsum("rk,rk->r", squares @ self.axes.curvature, squares)
        changes: Array = by_mean + by_covariance + crossed / 2 - more * c * squares.sum(1) / 2
        return changes

    def of_pair(self, rows: Array, others: Array) -> Array:  # rows and others: [r, d], centred, to [r], ψ₂
        left, right = rows @ self.axes.first, others @ self.axes.first
        product = left * right
        crossed = np.einsum("rk,rk->r", product @ self.axes.curvature, product)
        alone = (np.square(left).sum(1) + np.square(right).sum(1) - self.axes.spread.sum()) / 2
        pairs: Array = np.einsum("rk,rk->r", rows, others) + (crossed - alone) / 2 / self.axes.shrinkage(self.n)
        return pairs


@dataclass(frozen=True, eq=False)
class Normal:
    """Normal distribution with a factored covariance: a reference is factored once."""

    mean: Array  # [d]
    covariance: Array  # [d, d]

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> Normal:
        mu, sigma = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            shapes = f"{list(mu.shape)} and {list(sigma.shape)}"
            raise InvalidData(f"mean and covariance have the shapes {shapes}; they must be [d] and [d, d]")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise NonFinite("mean or covariance holds NaN or infinity; compute the features again")
        return cls(mu, sigma)

    @cached_property
    def cholesky(self) -> Array | None:
        """Cholesky's factor, [d, d]; None where the covariance has no full rank beyond rounding."""
        try:
            factor = np.linalg.cholesky(self.covariance).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return None
        return factor if _above_rounding(np.square(np.diag(factor))).all() else None

    @cached_property
    def spectral(self) -> Array:
        """Factor from the eigenvectors, [d, rank]."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = _above_rounding(values)
        factor: Array = vectors[:, kept] * np.sqrt(values[kept])
        return factor

    @property
    def factor(self) -> Array:
        """Factor of the covariance, factor factorᵀ, by the cheaper method, [d, rank]."""
        return self.spectral if self.cholesky is None else self.cholesky

    def inverse_factor(self, columns: Array) -> Array:  # [rank, c], to [d, c]
        """Return (factor^-ᵀ) columns, with the pseudo-inverse where the covariance has no full rank."""
        if self.cholesky is not None:
            return np.linalg.solve(self.cholesky.T, columns).astype(np.float64, copy=False)
        # The columns of the spectral factor are orthogonal, with the eigenvalues as their squared lengths.
        inverse: Array = self.spectral @ (columns / np.square(self.spectral).sum(0)[:, None])
        return inverse


def _above_rounding(values: Array) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = values > values.max(initial=0.0) * len(values) * EPSILON
    return kept


def distance_of_parts(gap: Array, first: Normal, second: Normal, cross: float) -> float:
    """Return |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½, with `gap` the first difference and `cross` the last trace."""
    # Rounding can make the distance of equal distributions negative.
    trace, other_trace = (float(np.trace(side.covariance)) for side in (first, second))
    return max(0.0, float(gap @ gap) + trace + other_trace - 2 * cross)


def _require_same_size(first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
    if first.shape != second.shape:
        raise InvalidData(f"features of {len(first)} and of {len(second)} dimensions cannot be compared; use one tap")
