"""Interface of a published program: its Fréchet distance and metrics, computed by the program's functions.

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
from evalsvc.metrics.mmd import kid

SUBSETS = 100
"""Number of random subsets of both sides whose mean is a program's KID: the default of torch-fidelity and clean-fid."""
SUBSET_SIZE = 1000
"""Largest number of images in a subset: the default of torch-fidelity and clean-fid."""

SEEDS = 2**32
"""Number of seeds that NumPy's global and legacy generators, which the programs use, accept."""

Rows = NDArray[np.float32]  # [n, d]
Statistics = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Mean [d] and covariance [d, d] as the programs compute them."""


@dataclass(frozen=True, eq=False)
class ReferenceProgram:
    """Published program that computes image metrics."""

    release: str
    """Name and version, as in `torch-fidelity 0.4.0`."""
    distance: Callable[[Statistics, Statistics], float]
    metrics: Mapping[str, ImageMetric]
    """Metrics that the program computes, by the names of evalsvc's metrics in the catalog."""


def statistics_of(features: Rows) -> Statistics:
    """Return mean and covariance as torch-fidelity and clean-fid compute them: the mean of float32 rows in float32."""
    return np.mean(features, axis=0), np.cov(features, rowvar=False)


def frechet_metrics(release: str, distance: Callable[[Statistics, Statistics], float]) -> dict[str, ImageMetric]:
    """Return `fid` and `fid64` with a program's distance, which need more images than features as evalsvc's do."""

    def estimate(sets: FeatureSets) -> Estimate:
        own, features = frechet_estimate(sets), sets.reference_features
        known = sets.moments()  # n is None for moments that a file states, of more images than it holds
        real = (known.mean, known.covariance) if features is None or known.n is None else statistics_of(features)
        return with_value(own, distance(statistics_of(sets.samples), real))

    return {
        name: ImageMetric(name, f"inception/{d}", "moments", "distance", "lower", d + 1, 1, estimate, program=release)
        for name, d in (("fid", 2048), ("fid64", 64))
    }


def kid_metric(release: str, estimate: Callable[[FeatureSets], Estimate]) -> ImageMetric:
    """Return `kid` with a program's estimate."""
    tap = "inception/2048"
    return ImageMetric("kid", tap, "features", "distance", "lower", 2, 1, estimate, biased=False, program=release)


def with_value(estimate: Estimate, value: float) -> Estimate:
    """Return evalsvc's estimate shifted to a program's value, with evalsvc's as the detail `own_value`."""
    shares = None if estimate.per_image is None else estimate.per_image + (value - estimate.value)
    return replace(estimate, value=value, per_image=shares, details={**estimate.details, "own_value": estimate.value})


def subset_size(sets: FeatureSets) -> int:
    """Return the number of images in a KID's subsets. Raises InvalidData with fewer than two images on a side."""
    size = min(len(sets.samples), len(sets.real()), SUBSET_SIZE)
    if size < 2:
        raise InvalidData(f"KID needs 2 images on each side, not {len(sets.samples)} and {len(sets.real())}; give more")
    return size


def kid_estimate(sets: FeatureSets, value: float, spread: float) -> Estimate:
    """Return a program's KID over SUBSETS random subsets with the standard deviation `spread`.

    The error is √(s² + spread² / SUBSETS): s is the error of evalsvc's `kid` on the same features, for the choice of
    the samples, and the other term is for the choice of the subsets. In simulations the error is .98 to 1.6 times the
    spread over samples, with the largest ratio where KID is near zero: the mean over many subsets varies less than
    disjoint blocks do. There are no shares of images: images count as often as the subsets hold them.
    """
    estimate = kid(sets)
    stderr = None if estimate.stderr is None else math.hypot(estimate.stderr, spread / math.sqrt(SUBSETS))
    details = {"subsets": SUBSETS, "subset_size": subset_size(sets), "subset_std": spread, "own_value": estimate.value}
    return Estimate(value, stderr, estimate.n, None, details)
