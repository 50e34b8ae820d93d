"""Interface of a metric of sampled images: the features it reads, its needs of the reference, and its estimate.

A metric is a function in this folder and one line in the catalog; no task knows a metric by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import Gaussian
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec.protocol import Direction


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its standard error and details."""

    value: float
    stderr: float | None
    """Standard error over sampled images, with the reference treated as fixed; None where the error is not known."""
    n: int
    per_image: NDArray[np.float64] | None = None
    """Linearised share of every sampled image, in the images' order, [n]. The mean is `value`; the standard deviation
    over √n is `stderr`, except for the remainder of an extrapolation. None for a value not made of sampled images."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able details: sizes, distances, spreads."""
    groups: int | None = None
    """Number of independent groups of images behind `stderr`; None if every image is independent."""

    @classmethod
    def of_images(cls, per_image: ArrayLike, **details: object) -> Estimate:  # per_image [n]
        """Return the mean of independent numbers, one per image; see `share_stderr` for the error of equal ones."""
        shares = np.asarray(per_image, dtype=np.float64)
        n = len(shares)
        stderr = float(shares.std(ddof=1)) / math.sqrt(n) if n > 1 else None
        if n > 1 and stderr == 0 and shares[0] in (0, 1):
            stderr = share_stderr(shares.sum(), n)
        return cls(float(shares.mean()), stderr, n, shares, details)


@dataclass(frozen=True, eq=False)
class FeatureSets:
    """Features of sampled images and the reference, from which a metric is computed."""

    samples: NDArray[np.float32]  # [n, d]
    """Features of the sampled images, in the order of the prompts."""
    reference: Gaussian | None = None
    reference_features: NDArray[np.float32] | None = None  # [m, d]
    """Features of the real images; None where only statistics are known, or no features are needed."""
    seed: int = 0
    """Seed of the subsets that an estimator draws."""

    def moments(self) -> Gaussian:
        """Return the reference's moments. Raises InvalidData without a reference."""
        if self.reference is None:
            raise InvalidData("the metric compares with the moments of real images; give a reference")
        return self.reference

    def real(self) -> NDArray[np.float32]:
        """Return the reference's features. Raises InvalidData where these are absent or have another size."""
        if self.reference_features is None:
            raise InvalidData("the metric needs features, and imported statistics have none; give real images")
        if self.reference_features.shape[1] != self.samples.shape[1]:
            sizes = f"{self.samples.shape[1]} and of {self.reference_features.shape[1]}"
            raise InvalidData(f"features of {sizes} dimensions cannot be compared; use the same tap for both")
        return self.reference_features


@dataclass(frozen=True)
class ImageMetric:
    """A metric of sampled images with one name."""

    name: str
    """Second half of the metric's name: `fid`."""
    features: str
    """Extractor, with the tap where the extractor has several: `inception/2048`, `clip`, `clip_s`, `dinov2`."""
    needs: Literal["moments", "features", "nothing"]
    unit: str
    direction: Direction
    min_images: int
    """Smallest number of sampled images; with fewer, the value is meaningless and is left out."""
    version: int
    """Version of the estimator. Every change that moves the metric's numbers raises the version."""
    estimate: Callable[[FeatureSets], Estimate]
    biased: bool = True
    """Whether the expectation depends on the number of sampled images, which is then part of the protocol."""
    on_request: bool = False
    """Whether the metric is measured only where a task's `metrics`, or the recipe of the task, names it."""
    program: str = ""
    """Name and release of the published program that computes the value; empty for evalsvc's estimators."""

    @property
    def estimator(self) -> str:
        """Name of the estimator in a protocol: name, version and program."""
        versioned = f"{self.name}/{self.version}"
        return f"{versioned} by {self.program}" if self.program else versioned
