"""Correction of the jackknife, which counts the variance of pairs of items twice.

Write a statistic of n independent items as T = θ + Σ ψ₁(x_i) / n + Σ_{i≠j} ψ₂(x_i, x_j) / n², with E ψ₂(x, ·) = 0. With
σ₁² = E ψ₁² and σ₂² = E ψ₂(x, x')² of two independent items,

    variance of T                          σ₁²/n + 2 σ₂²/n²
    mean of the jackknife's estimate of it  σ₁²/n + 4 σ₂²/n²

The distances between two distributions have ψ₁ = 0 where the distributions are equal, so that a jackknife's standard
error is √2 times too large there. An estimate of σ₂² removes the surplus 2 σ₂²/n².

Source: B. Efron, C. Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981, equation 2.4 ff.
"""

from __future__ import annotations

import math

from evalsvc.metrics.frechet import Array, Linearised

CORRECTED = 4
"""Images per feature from which the variance of pairs of images is counted once for a Fréchet distance. With fewer
images, the error of the expansion of the distance is as large; counted twice, differences are detected too seldom."""

LEAST = 0.5
"""Smallest share of the jackknife's variance that remains: the surplus is half of the variance where ψ₁ = 0."""


def without_surplus(
    shares: Array,  # [n]
    surplus: float,
) -> Array:  # [n]
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


def pair_variance(
    sums: Array,  # [n]
    squares: float,
) -> float:
    """Estimate σ₂² of the pairs of a kernel matrix without bias, and without additive terms of single items.

    `sums` are the row sums of the symmetric matrix without its diagonal, `squares` is the sum of the squares of all
    entries off the diagonal. The matrix is U-centred: rows and columns lose their means in such a way that the mean
    square of what is left is unbiased. 0 for fewer than 4 items.

    Source: G. Székely, M. Rizzo, Partial distance correlation with methods for dissimilarities, Annals of Statistics
    42, 2014, definitions 2 and 3.
    """
    n = len(sums)
    if n < 4:
        return 0.0
    centred = squares - 2 * float(sums @ sums) / (n - 2) + float(sums.sum()) ** 2 / ((n - 1) * (n - 2))
    return max(0.0, centred / (n * (n - 3)))


def counted_once(distance: Linearised, dimensions: int) -> Array:  # [n]
    """Return the shares of a Fréchet distance on `dimensions` features, moved so that their variance is the distance's.

    Below `CORRECTED` images per feature the shares are returned unchanged.
    """
    enough = len(distance.shares) >= CORRECTED * dimensions
    return without_surplus(distance.shares, distance.surplus) if enough else distance.shares
