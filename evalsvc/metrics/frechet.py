"""The Fréchet distance between two sets of features, each taken as a normal distribution: FID on Inception's features.

Features are reduced to moments, which add up over shards; no set of features need be in one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalsvc.errors import InvalidData, NonFinite

Array = NDArray[np.float64]


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

    With factors Σ = A Aᵀ the eigenvalues of Σ₁Σ₂ are the squared singular values of A₁ᵀA₂, so the last trace is the sum
    of these. The factors come from eigenvectors, without those whose eigenvalue is rounding: their square roots, as in
    the eigenvalues of Σ₁Σ₂ itself, add up to relative errors of 2e-6 for d = 2,048 and a few hundred images.

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


@dataclass(frozen=True, eq=False)
class _Normal:
    """A normal distribution with its covariance factored: the costly part, done once for a reference."""

    mean: Array  # [d]
    trace: float
    factor: Array  # [d, rank]: covariance = factor factorᵀ

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> _Normal:
        mu, sigma = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            shapes = f"{list(mu.shape)} and {list(sigma.shape)}"
            raise InvalidData(f"mean and covariance have the shapes {shapes}; they must be [d] and [d, d]")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise NonFinite("mean or covariance holds NaN or infinity; compute the features again")
        return cls(mu, float(np.trace(sigma)), _factor(sigma))


def _factor(sigma: Array) -> Array:
    values, vectors = np.linalg.eigh(sigma)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    factor: Array = vectors[:, kept] * np.sqrt(values[kept])
    return factor


def _distance(first: _Normal, second: _Normal) -> float:
    _require_same_size(first.mean, second.mean)
    gap = first.mean - second.mean
    cross = float(np.linalg.svd(first.factor.T @ second.factor, compute_uv=False).sum())
    # Rounding can make the distance of equal distributions negative, which no distance is.
    return max(0.0, float(gap @ gap) + first.trace + second.trace - 2 * cross)


def _require_same_size(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise InvalidData(
            f"features of {len(first)} and of {len(second)} dimensions cannot be compared; use the same tap for both"
        )
