"""FID∞: what a Fréchet distance would be of infinitely many images, by a fit over smaller sets.

A distance of n images is too large by about C/n, and C depends on the model, so that two models may change places as n
grows. The extrapolation is free of it to first order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.frechet import Gaussian, Moments, frechet_distance, frechet_shares
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric

PARTITIONS = (1, 2, 3, 4)
"""Into so many parts the images are divided, each time all of them: ten distances."""


def fid_infinity(sets: FeatureSets) -> Estimate:
    """The intercept of a straight line through the distances of n/g images against g/n.

    The images are put into a seeded order and divided into g parts of (nearly) equal size for each g of PARTITIONS; the
    distance at n/g is the mean over the parts. As every image has a part in every mean, what one image adds is the
    same in all of them and the intercept's error is little above that of the distance itself, where sets drawn anew for
    every size would add the noise of each. `per_image` are the shares of the distance at n, moved to the new mean.

    Source: M. J. Chong, D. Forsyth, arXiv 1911.07023, equation 7, who draw each size at random.

    Raises:
        InvalidData: no more images in the smallest part than features, or no reference.
    """
    reference = sets.moments()
    order = np.random.default_rng(sets.seed).permutation(len(sets.samples))
    value, shares = frechet_shares(sets.samples, reference)
    distances = np.array([value, *(_mean_distance(sets, reference, order, parts) for parts in PARTITIONS[1:])])
    inverse = np.array(PARTITIONS) / len(order)
    slope, intercept = np.polyfit(inverse, distances, 1)
    misfit = distances - (intercept + slope * inverse)
    return Estimate.of_images(
        shares - value + intercept,
        slope=float(slope),
        sizes=[len(order) // parts for parts in PARTITIONS],
        distances=distances.tolist(),
        misfit=float(np.abs(misfit).max()),
    )


def _mean_distance(sets: FeatureSets, reference: Gaussian, order: NDArray[np.int64], parts: int) -> float:
    return float(np.mean([_distance(sets.samples[some], reference) for some in np.array_split(order, parts)]))


def _distance(features: NDArray[Any], reference: Gaussian) -> float:
    moments = Moments.of(features)
    return frechet_distance(moments.mean, moments.covariance, reference.mean, reference.covariance)


def _extrapolated(name: str, features: str, dimensions: int) -> ImageMetric:
    smallest = PARTITIONS[-1] * (dimensions + 1)
    return ImageMetric(name, features, "moments", "distance", "lower", smallest, 1, fid_infinity)


FID_INFINITY = _extrapolated("fid_infinity", "inception/2048", 2048)
FID64_INFINITY = _extrapolated("fid64_infinity", "inception/64", 64)
