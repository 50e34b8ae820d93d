"""What a published program is to image tasks: a Fréchet distance and metrics, computed by the program's own functions.

The values are the program's. Neither program has standard errors, so these are evalsvc's, on the same features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InvalidData
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.kid import kid

SUBSETS = 100
"""Random subsets of both sides whose mean is a program's KID: the default of torch-fidelity and of clean-fid."""
SUBSET_SIZE = 1000
"""Images in a subset at most, also their default."""

Rows = NDArray[np.float32]  # [n, d]
Statistics = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Mean [d] and covariance [d, d], as the programs have them."""


@dataclass(frozen=True, eq=False)
class ReferenceProgram:
    """A published program."""

    release: str
    """Name and version, as in `torch-fidelity 0.4.0`."""
    distance: Callable[[Statistics, Statistics], float]
    """The program's Fréchet distance between samples and real images."""
    metrics: Mapping[str, ImageMetric]
    """Metrics that the program computes, by the names that evalsvc's own have in the catalog."""


def statistics_of(features: Rows) -> Statistics:
    """Return mean and covariance as torch-fidelity and clean-fid compute them: the mean of float32 rows in float32."""
    return np.mean(features, axis=0), np.cov(features, rowvar=False)


def frechet_metrics(release: str, distance: Callable[[Statistics, Statistics], float]) -> dict[str, ImageMetric]:
    """Return `fid` and `fid64` with a program's distance, for more images than features, as of evalsvc's own."""

    def estimate(sets: FeatureSets) -> Estimate:
        return with_value(frechet_estimate(sets), distance(statistics_of(sets.samples), _real_statistics(sets)))

    return {
        name: ImageMetric(name, f"inception/{d}", "moments", "distance", "lower", d + 1, 1, estimate, program=release)
        for name, d in (("fid", 2048), ("fid64", 64))
    }


def kid_metric(release: str, estimate: Callable[[FeatureSets], Estimate]) -> ImageMetric:
    """Return `kid` with a program's estimate."""
    tap = "inception/2048"
    return ImageMetric("kid", tap, "features", "distance", "lower", 2, 1, estimate, biased=False, program=release)


def _real_statistics(sets: FeatureSets) -> Statistics:
    """Return the program's statistics of the real images, or imported ones as they are."""
    if sets.reference_features is not None:
        return statistics_of(sets.reference_features)
    reference = sets.moments()
    return reference.mean, reference.covariance


def with_value(found: Estimate, value: float) -> Estimate:
    """Return evalsvc's estimate with a program's value, and with the images' shares moved to that value.

    `own_value` in the details is evalsvc's value of the same features, which checks the program's.
    """
    shares = None if found.per_image is None else found.per_image + (value - found.value)
    return replace(found, value=value, per_image=shares, details={**found.details, "own_value": found.value})


def subset_size(sets: FeatureSets) -> int:
    """Return the number of images in a KID's subsets. Raises InvalidData where there are no two on each side."""
    size = min(len(sets.samples), len(sets.real()), SUBSET_SIZE)
    if size < 2:
        raise InvalidData(f"KID needs 2 images on each side, {len(sets.real())} real ones are there; give more")
    return size


def kid_estimate(sets: FeatureSets, value: float, spread: float) -> Estimate:
    """Return a program's KID over SUBSETS random subsets, of which `spread` is the standard deviation.

    The error is √(s² + spread² / SUBSETS): s is the error of evalsvc's `kid` on the same features, for the choice of
    the samples, and the rest is for the choice of the subsets. In simulations the error is .98 to 1.6 times the spread
    over samples, the more the nearer KID is to zero: the mean over many subsets varies less than disjoint blocks do.
    There are no shares of images: images count as often as the subsets happen to hold them.
    """
    own = kid(sets)
    stderr = None if own.stderr is None else math.hypot(own.stderr, spread / math.sqrt(SUBSETS))
    details = {"subsets": SUBSETS, "subset_size": subset_size(sets), "subset_std": spread, "own_value": own.value}
    return Estimate(value, stderr, own.n, None, details)
