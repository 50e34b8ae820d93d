"""Fréchet distance between images and their reconstructions, with an error that accounts for the pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def paired_frechet_shares(
    first: NDArray[np.floating],  # [n, d]
    second: NDArray[np.floating],  # [n, d], row by row of the same images
) -> Linearised:
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
        raise InvalidData(
            f"pairs need rows of one shape on both sides, not {list(first.shape)} and {list(second.shape)}"
        )
    sides = [Moments.of(side) for side in (first, second)]
    require_more_rows_than_features(sides[0])
    normal1, normal2 = (Normal.of(moments.mean, moments.covariance) for moments in sides)
    axes, n = CommonAxes.of(normal1, normal2), len(first)
    pairing = _Pairing(n, normal1.mean - normal2.mean, axes)

    def pairs(rows: NDArray[np.integer] | slice) -> _Pairs:
        return _Pairs.of(first[rows] - normal1.mean, second[rows] - normal2.mean, axes)

    starts = range(0, n, CHUNK_ROWS)
    changes = np.concatenate([pairing.changes(pairs(slice(start, start + CHUNK_ROWS))) for start in starts])
    crossed = np.concatenate([pairing.of_two(pairs(left), pairs(right)) for left, right in random_pairs(n)])
    value = distance_of_parts(pairing.gap, normal1, normal2, float(axes.spread.sum()))
    return Linearised(value, value - (n - 1) * (changes - changes.mean()), 2 * float(np.square(crossed).mean()) / n**2)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of centred rows."""

    rows: tuple[Array, Array]  # z₁ and z₂, [r, d] each
    inner: tuple[Array, Array]  # u and v, [r, rank] each

    @classmethod
    def of(cls, first: Array, second: Array, axes: CommonAxes) -> _Pairs:
        return cls((first, second), (first @ axes.first, second @ axes.second))

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
        for sign, product in _products(pairs, others):
            total += sign * np.einsum("rk,rk->r", product @ self.axes.curvature, product)
        return total


def _products(pairs: _Pairs, others: _Pairs) -> Iterator[tuple[int, Array]]:
    for place, left in enumerate(pairs.inner):
        for other_place, right in enumerate(others.inner):
            yield 1 if place == other_place else -1, left * right
