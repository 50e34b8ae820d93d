"""Fréchet distances that papers report: FID on Inception's features, FD-DINOv2 on DINOv2's, and FID∞.

The distance of n images is too large by about C/n. FID∞ is the distance of infinitely many images: an extrapolation
from smaller sets removes the terms in 1/n and 1/n².
"""

from __future__ import annotations

import math
from functools import partial, reduce
from itertools import combinations
from operator import add

import numpy as np

from evalsvc.metrics.frechet import Moments, counted_once, frechet_distance, frechet_shares, without_surplus
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def frechet_estimate(sets: FeatureSets) -> Estimate:
    """Compute |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) to the reference's moments, with a share of each sampled image.

    The value is too large by about C/n, so only values of the same n are comparable. The error is that of the shares of
    `frechet_shares`, a jackknife with the variance of pairs counted once (`counted_once`) and the reference treated as
    fixed. In simulations with 64 features the error is .91 to 1.11 times the spread over samples from 4 images per
    feature on, in one of 16 settings 1.36, and 1.06 to 1.5 times below.

    Source: D. C. Dowson, B. V. Landau, J. Multivariate Analysis 12, 1982; the error: L. Jaeckel, The infinitesimal
    jackknife, 1972, and B. Efron, C. Stein, Annals of Statistics 9, 1981.
    """
    linearised = frechet_shares(sets.samples, sets.moments())
    return Estimate.of_images(counted_once(linearised, sets.samples.shape[1]))


_metric = partial(ImageMetric, needs="moments", unit="distance", direction="lower")
# With no more images than features, the covariance has no full rank and the distance is mostly the missing part.
_plain = partial(_metric, version=3, estimate=frechet_estimate)

FID = _plain("fid", "inception/2048", min_images=2049)
"""FID. Source: M. Heusel et al., arXiv 1706.08500."""

FID64 = _plain("fid64", "inception/64", min_images=65)
"""FID on the first 64 features, which needs only a few hundred images."""

SFID = _plain("sfid", "inception/2023", version=1, min_images=2024, on_request=True)
"""sFID, on features that keep the place in the image. Source: C. Nash et al., arXiv 2103.03841."""

FD_DINOV2 = _plain("fd_dinov2", "dinov2", min_images=1025)
"""FD-DINOv2. Source: G. Stein et al., arXiv 2306.04675, whose network is ViT-L/14 with 1,024 features."""


GROUPS = 6
"""Number of groups of images. The whole set, and the sets without one and without two groups, give 22 distances."""

REMAINDER = 3.0
"""Ratio of the term in 1/n³ to the square of the term in 1/n² over that in 1/n: 2.5, and 3 with the groups' sizes."""

BELOW_ZERO = 1.9
"""Largest number of standard errors by which a value may lie below zero."""


def fid_infinity(sets: FeatureSets) -> Estimate:
    """Extrapolate a Fréchet distance by the jackknife of second order over groups of images.

    The images are divided into g = GROUPS groups at random. With θ₀ the distance of all images, θ₁ the mean distance
    without one group and θ₂ that without two, over all groups and all pairs of groups,

        FID∞ = (g² θ₀ - 2 (g - 1)² θ₁ + (g - 2)² θ₂) / 2

    which is the intercept of the parabola through the three distances against one over their numbers of images. The
    value is unbiased up to 1/n³ for light tails; with t₅ tails and 64 features, .70 comes out as 1.00, .95 and .71 of
    260, 520 and 1,040 images. Like KID, the value is sometimes below zero for a distance near zero.

    `per_image` holds the shares of the distance of all images, shifted to FID∞, for paired differences; their error is
    `sampling_stderr`. `stderr` also counts `remainder`, an estimate of the error of the extrapolation. A value below
    zero by more than its error proves a larger remainder: the error is raised until the interval reaches zero.

    Source: for the aim, M. J. Chong, D. Forsyth, arXiv 1911.07023, who fit a straight line through random subsets. For
    the estimator, W. Schucany, H. Gray, D. Owen, On bias reduction in estimation, Journal of the American Statistical
    Association 66, 1971, equation 3.
    """
    reference = sets.moments()
    n = len(sets.samples)
    order = np.random.default_rng(sets.seed).permutation(n)
    groups = [Moments.of(sets.samples[chosen]) for chosen in np.array_split(order, GROUPS)]
    linearised = frechet_shares(sets.samples, reference)
    distances = [linearised.value]
    for left_out in (1, 2):
        without = [reduce(add, kept) for kept in combinations(groups, GROUPS - left_out)]
        apart = [frechet_distance(kept.mean, kept.covariance, reference.mean, reference.covariance) for kept in without]
        distances.append(float(np.mean(apart)))
    g = GROUPS
    once = g * distances[0] - (g - 1) * distances[1]
    value = (g**2 * distances[0] - 2 * (g - 1) ** 2 * distances[1] + (g - 2) ** 2 * distances[2]) / 2
    # Pairs of images of one group drop out of the extrapolation, and the others weigh g/(g - 1) times as much.
    pairs = g / (g - 1)
    shares = without_surplus(linearised.shares, (2 - pairs) * linearised.surplus) - linearised.value + value
    sampled = Estimate.of_images(shares)
    assert sampled.stderr is not None, "a distance has more than two images"
    # For equal covariances the terms in 1/n, 1/n² and 1/n³ are those of the half moment of the Marchenko-Pastur law,
    # 1 - γ/8 - γ²/64 - 5γ³/1024 - …, γ = d/n, with a third term of 2.5 times the second's square over the first.
    first, second = linearised.value - once, once - value
    remainder = REMAINDER * second**2 / abs(first) if first else 0.0
    stderr = max(math.hypot(sampled.stderr, remainder), -value / BELOW_ZERO)
    details = {
        "groups": GROUPS,
        "sizes": [n - left_out * n // GROUPS for left_out in range(3)],
        "distances": distances,
        "sampling_stderr": sampled.stderr,
        "remainder": remainder,
    }
    return Estimate(value, stderr, n, shares, details)


def smallest(dimensions: int) -> int:
    """Return the number of images from which the value's bias is below half its standard error, found by simulation.

    Where both distributions are equal and normal with equal variances, the extrapolation leaves about .018 d (d/n)³ and
    the standard error is .55 d/n: the ratio is proportional to d³/n², so the number of images must grow as d^1.5. The
    other term keeps the smallest set at 2.7 images per feature.
    """
    return max(4 * (dimensions + 1), math.ceil(0.32 * dimensions * math.sqrt(dimensions)))


_extrapolated = partial(_metric, version=2, estimate=fid_infinity)
FID_INFINITY = _extrapolated("fid_infinity", "inception/2048", min_images=smallest(2048))
FID64_INFINITY = _extrapolated("fid64_infinity", "inception/64", min_images=smallest(64))
