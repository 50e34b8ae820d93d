"""What a metric of sampled images is: which features it reads, what it needs of the reference, and what it returns.

A metric is one file in this folder and one line in the catalog; tasks know none of them by name.
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
    """A value and how sure it is."""

    value: float
    stderr: float | None
    """Standard error, with the sampled images as what varies and the reference as given; None where it is not known."""
    n: int
    """Sampled images behind it."""
    per_image: NDArray[np.float64] | None = None
    """[n]: the linearised share of every sampled image, in their order. The mean is `value`; the standard deviation
    over √n is `stderr`, but for an extrapolation's remainder. None where the value is not made of sampled images."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: sizes, distances, spreads."""
    groups: int | None = None
    """Independent groups of images behind `stderr`; None: every image is one."""

    @classmethod
    def of_images(
        cls,
        per_image: ArrayLike,  # [n]
        **details: object,
    ) -> Estimate:
        """Take the mean of independent numbers, one an image.

        The standard error is the standard deviation over √n, and None for one image. For numbers that are all 0 or all
        1, it is that of Agresti and Coull; see `share_stderr`.
        """
        shares = np.asarray(per_image, dtype=np.float64)
        n = len(shares)
        stderr = float(shares.std(ddof=1)) / math.sqrt(n) if n > 1 else None
        if n > 1 and stderr == 0 and shares[0] in (0, 1):
            stderr = share_stderr(shares.sum(), n)
        return cls(float(shares.mean()), stderr, n, shares, details)


@dataclass(frozen=True, eq=False)
class FeatureSets:
    """What a metric is computed from."""

    samples: NDArray[np.float32]  # [n, d]
    """Features of the sampled images, in the order of the prompts."""
    reference: Gaussian | None = None
    """Moments of the real images' features."""
    reference_features: NDArray[np.float32] | None = None  # [m, d]
    """The real images' features themselves; None where only statistics are known, or none are needed."""
    seed: int = 0
    """Of the subsets that an estimator draws."""

    def moments(self) -> Gaussian:
        """The reference's. Raises InvalidData where there are none."""
        if self.reference is None:
            raise InvalidData("the metric compares with the moments of real images; give a reference")
        return self.reference

    def real(self) -> NDArray[np.float32]:
        """The reference's features. Raises InvalidData where there are none, or of another size."""
        if self.reference_features is None:
            raise InvalidData(
                "the metric needs the features of the real images, and imported statistics have none; give the images"
            )
        if self.reference_features.shape[1] != self.samples.shape[1]:
            sizes = f"{self.samples.shape[1]} and of {self.reference_features.shape[1]}"
            raise InvalidData(f"features of {sizes} dimensions cannot be compared; use the same tap for both")
        return self.reference_features


@dataclass(frozen=True)
class ImageMetric:
    """A metric of sampled images, under one name."""

    name: str
    """Second half of the metric's name: `fid`."""
    features: str
    """Extractor, and tap where it has several: `inception/2048`, `clip`, `clip_score`, `dinov2`."""
    needs: Literal["moments", "features", "nothing"]
    """Of the reference."""
    unit: str
    direction: Direction
    min_images: int
    """With fewer sampled images the value would be worthless and is left out."""
    version: int
    """Of the estimator. Whatever moves its numbers raises it."""
    estimate: Callable[[FeatureSets], Estimate]
    biased: bool = True
    """Whether its expectation moves with the number of sampled images, which then is part of the protocol."""
    program: str = ""
    """Name and release of the published program that computes the value; empty for evalsvc's own estimators."""

    @property
    def estimator(self) -> str:
        """What a protocol says of it."""
        own = f"{self.name}/{self.version}"
        return f"{own} by {self.program}" if self.program else own
