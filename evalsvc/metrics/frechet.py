"""The Fréchet distance between two sets of features, each taken as a normal distribution: FID on Inception's features.

Features are reduced to moments, which add up over shards; no set of features need be in one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalsvc.errors import InvalidData, NonFinite

Array = NDArray[np.float64]

EPSILON = float(np.finfo(np.float64).eps)

ROWS_AT_ONCE = 4096
"""Feature rows of which float64 copies are alive at a time."""


class Gaussian(Protocol):
    """What a distance needs to know of a set of features."""

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
    def of(
        cls,
        features: ArrayLike,  # [n, d]
    ) -> Moments:
        """The moments of `features`; n may be 0.

        Raises:
            InvalidData: not two-dimensional.
            NonFinite: NaN or infinity in a row, which is named.
        """
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2:
            raise InvalidData(f"features have the shape {list(rows.shape)}; give one row an image: [n, d]")
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise NonFinite(
                f"{int((~finite).sum())} of {len(rows)} feature rows hold NaN or infinity, first row "
                f"{int(np.argmin(finite))}; look at the images behind them"
            )
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        """Both sets together."""
        _require_same_size(self.sum, other.sum)
        return Moments(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    def __sub__(self, group: Moments) -> Moments:
        """This set without `group`, which is a part of it. Raises InvalidData if the group is the larger one."""
        _require_same_size(self.sum, group.sum)
        if group.n > self.n:
            raise InvalidData(f"a group of {group.n} cannot be taken out of {self.n}")
        return Moments(self.n - group.n, self.sum - group.sum, self.outer - group.outer)

    @property
    def mean(self) -> Array:
        """[d]. Raises InvalidData for an empty set."""
        if self.n < 1:
            raise InvalidData("an empty set of features has no mean; give at least 2 images")
        return self.sum / self.n

    @property
    def covariance(self) -> Array:
        """[d, d], the unbiased one (ddof=1). Raises InvalidData for n < 2."""
        if self.n < 2:
            raise InvalidData(f"the covariance of {self.n} feature rows is not defined; give at least 2 images")
        mean = self.mean
        covariance = (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1)
        return (covariance + covariance.T) / 2


def frechet_distance(
    mean1: ArrayLike,  # [d]
    cov1: ArrayLike,  # [d, d]
    mean2: ArrayLike,  # [d]
    cov2: ArrayLike,  # [d, d]
) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), also where the covariances have no full rank (n ≤ d).

    With Σ₂ = A Aᵀ the eigenvalues of Σ₁Σ₂ are those of AᵀΣ₁A, which is symmetric, and the last trace is the sum of
    their roots. Where both have full rank, A is Cholesky's. Otherwise both are factored by eigenvectors, without those
    whose eigenvalue is rounding: their square roots, as in the eigenvalues of Σ₁Σ₂ itself, add up to relative errors of
    2e-6 for d = 2,048 and a few hundred images. The roots are then the singular values of A₁ᵀA₂.

    Source: D. C. Dowson, B. V. Landau, The Fréchet distance between multivariate normal distributions, J. Multivariate
    Analysis 12 (1982); as a metric of images: M. Heusel et al., arXiv 1706.08500.

    Raises:
        InvalidData: sizes differ.
        NonFinite: NaN or infinity in an argument.
    """
    return _distance(_Normal.of(mean1, cov1), _Normal.of(mean2, cov2))


def frechet_jackknife(groups: Sequence[Moments], reference: Gaussian) -> tuple[float, float | None]:
    """Distance of all groups together to `reference`, and its standard error with the groups as what varies.

    The delete-m jackknife for groups of unequal sizes m_j. With n = Σ m_j, h_j = n / m_j, θ the distance of all and
    θ_(j) that without group j:

        pseudo-values  θ*_j = h_j θ - (h_j - 1) θ_(j)        θ_J = Σ θ*_j / h_j
        variance       1/g Σ (θ*_j - θ_J)² / (h_j - 1)

    The error is of the fakes alone: the reference is taken as given. The bias that a distance has at n images is in the
    value and not corrected here: the pseudo-values would remove only the part in 1/n.

    Source: F. Busing, E. Meijer, R. van der Leeden, Delete-m jackknife for unequal m, Statistics and Computing 9, 1999.

    Returns None for the error with fewer than two groups, or where leaving one out leaves fewer than 2 rows.

    Raises:
        InvalidData: fewer than 2 rows in all, or sizes differ.
    """
    groups = [group for group in groups if group.n]
    if not groups:
        raise InvalidData("there are no features to compare; give at least 2 images")
    total = reduce(add, groups)
    target = _Normal.of(reference.mean, reference.covariance)
    value = _distance(_Normal.of(total.mean, total.covariance), target)
    rest = [total - group for group in groups]
    if len(groups) < 2 or any(moments.n < 2 for moments in rest):
        return value, None
    without = np.array([_distance(_Normal.of(moments.mean, moments.covariance), target) for moments in rest])
    ratio = total.n / np.array([group.n for group in groups])
    pseudo = ratio * value - (ratio - 1) * without
    centre = (pseudo / ratio).sum()
    return value, math.sqrt(float(((pseudo - centre) ** 2 / (ratio - 1)).mean()))


def frechet_shares(
    features: NDArray[Any],  # [n, d]
    reference: Gaussian,
) -> tuple[float, Array]:  # the distance; [n]
    """Distance of `features` to `reference`, and what every row adds to it: a jackknife from one decomposition.

    The share of row i is the distance plus what (n - 1) (θ - θ_(i)) deviates from its mean, with θ_(i) the distance
    without the row. The mean of the shares is the distance, their standard deviation over √n its standard error, the
    reference taken as given. Shares of two sets on the same prompts and noise can be subtracted row by row.

    θ_(i) is expanded to second order. With z = x - μ₁, Σ₂ = A Aᵀ, AᵀΣ₁A = U diag(λ) Uᵀ and y = UᵀAᵀz, taking a row out
    changes μ₁ by -z/(n - 1), Σ₁ by Σ₁/(n - 2) - c zzᵀ and AᵀΣ₁A, in its eigenvectors, by E = diag(λ)/(n - 2) - c yyᵀ,
    c = n/((n - 1)(n - 2)); and

        θ_(i) - θ ≈ 2 (μ₁ - μ₂)·Δμ + |Δμ|² + tr ΔΣ - Σ_k E_kk/√λ_k + ½ Σ_kl E_kl² / (√λ_k √λ_l (√λ_k + √λ_l))

    The first order alone, the influence function 2 (μ₁ - μ₂)·z + zᵀ(I - T)z - tr (I - T)Σ₁ with the optimal transport T
    = A(AᵀΣ₁A)^-½Aᵀ, is the same where the distance is large, and up to a third too large an error where it is next to
    zero or n is near d: its gradient vanishes there.

    Source: L. Jaeckel, The infinitesimal jackknife, Bell Laboratories MM 72-1215-11, 1972; the derivatives of tr M^½
    from its divided differences, R. Bhatia, Matrix Analysis, 1997, section V.3.

    Raises:
        InvalidData: n ≤ d, where there are no such derivatives; or sizes differ.
    """
    moments = Moments.of(features)
    n, d = moments.n, len(moments.sum)
    if n <= max(d, 2):
        raise InvalidData(f"{n:,} images cannot bear a distance on {d:,} features; give more images than features")
    first, second = (_Normal.of(one.mean, one.covariance) for one in (moments, reference))
    _require_same_size(first.mean, second.mean)
    gap, factor = first.mean - second.mean, second.factor
    values, vectors = np.linalg.eigh(factor.T @ first.covariance @ factor)
    kept = _above_rounding(values)
    transport = _Transport(n, first.trace, gap, values[kept], factor @ vectors[:, kept])
    parts = (np.asarray(features[start : start + ROWS_AT_ONCE]) for start in range(0, n, ROWS_AT_ONCE))
    changes = np.concatenate([transport.changes_without(part - first.mean) for part in parts])
    value = _total(gap, first, second, float(np.sqrt(values[kept]).sum()))
    return value, value - (n - 1) * (changes - changes.mean())


@dataclass(frozen=True, eq=False)
class _Transport:
    """How a distance changes when a row is taken out; see `frechet_shares`."""

    n: int
    trace: float  # of Σ₁
    gap: Array  # [d], μ₁ - μ₂
    values: Array  # [rank], λ
    directions: Array  # [d, rank], A U

    def changes_without(
        self,
        rows: Array,  # [r, d], centred
    ) -> Array:  # [r]
        more, c = 1 / (self.n - 2), self.n / ((self.n - 1) * (self.n - 2))
        roots = np.sqrt(self.values)
        lengths, squares = np.square(rows).sum(1), np.square(rows @ self.directions)
        by_mean = -2 * (rows @ self.gap) / (self.n - 1) + lengths / (self.n - 1) ** 2
        by_covariance = more * (self.trace - roots.sum()) - c * (lengths - squares @ (1 / roots))
        curvature = 1 / (np.outer(roots, roots) * np.add.outer(roots, roots))
        # Of E² = (more diag(λ) - c yyᵀ)², entry by entry; what is the same for every row is left out.
        crossed = c * c * np.einsum("rk,rk->r", squares @ curvature, squares)
        changes: Array = by_mean + by_covariance + crossed / 2 - more * c * (squares @ (1 / (2 * roots)))
        return changes


@dataclass(frozen=True, eq=False)
class _Normal:
    """A normal distribution with its covariance factored: done once for a reference."""

    mean: Array  # [d]
    covariance: Array  # [d, d]

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> _Normal:
        mu, sigma = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            shapes = f"{list(mu.shape)} and {list(sigma.shape)}"
            raise InvalidData(f"mean and covariance have the shapes {shapes}; they must be [d] and [d, d]")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise NonFinite("mean or covariance holds NaN or infinity; compute the features again")
        return cls(mu, sigma)

    @property
    def trace(self) -> float:
        return float(np.trace(self.covariance))

    @cached_property
    def cholesky(self) -> Array | None:
        """[d, d]; None where the covariance has no full rank beyond rounding."""
        try:
            factor = np.linalg.cholesky(self.covariance).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return None
        return factor if _above_rounding(np.square(np.diag(factor))).all() else None

    @cached_property
    def spectral(self) -> Array:
        """[d, rank], from the eigenvectors."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = _above_rounding(values)
        factor: Array = vectors[:, kept] * np.sqrt(values[kept])
        return factor

    @property
    def factor(self) -> Array:
        """[d, rank]: covariance = factor factorᵀ, whichever is cheaper."""
        return self.spectral if self.cholesky is None else self.cholesky


def _above_rounding(values: Array) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = values > values.max(initial=0.0) * len(values) * EPSILON
    return kept


def _distance(first: _Normal, second: _Normal) -> float:
    _require_same_size(first.mean, second.mean)
    gap = first.mean - second.mean
    if first.cholesky is None or second.cholesky is None:
        cross = float(np.linalg.svd(first.spectral.T @ second.spectral, compute_uv=False).sum())
    else:
        product = second.cholesky.T @ first.covariance @ second.cholesky
        cross = float(np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0)).sum())
    return _total(gap, first, second, cross)


def _total(gap: Array, first: _Normal, second: _Normal, cross: float) -> float:
    # Rounding can make the distance of equal distributions negative, which no distance is.
    return max(0.0, float(gap @ gap) + first.trace + second.trace - 2 * cross)


def _require_same_size(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise InvalidData(
            f"features of {len(first)} and of {len(second)} dimensions cannot be compared; use the same tap for both"
        )
