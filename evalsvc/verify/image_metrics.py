"""Comparing image metrics of the same PNG files between evalsvc and the programs of `image_programs.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evalsvc.features import FeatureExtractor
from evalsvc.installation import pip_install
from evalsvc.metrics.frechet import EPSILON, Moments, frechet_distance
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.spec import catalog
from evalsvc.verify.agreement import Agreement, Finding, Untried
from evalsvc.verify.image_programs import NEIGHBOURS, PROGRAMS, TAPS, ImageProgram, Measured, Rows

ROUNDING = 5e-7
"""Relative difference between features of two programs: four units of float32's rounding."""

KID_ROUNDING = 5e-6
"""Change of KID by sums of kernels in float32, relative to the largest kernel. Up to a million kernels are added, and
KID is a small difference of such sums."""


@dataclass(frozen=True)
class Measurement:
    """A metric by evalsvc."""

    value: float
    tolerance: float
    """Largest difference to another program's value that rounding explains."""
    note: str
    """Origin of the tolerance."""


class OwnMetrics:
    """Metrics of TAPS of two folders of PNG files, by evalsvc's network and estimators."""

    def __init__(self, images: Measured, extractor: FeatureExtractor) -> None:
        self._images, self._extractor = images, extractor
        self._sides: dict[tuple[str, int], Sides] = {}

    def measure(self, name: str, resize: str) -> Measurement:
        """Compute a metric as other programs do: KID on a single subset, and distances even for few images."""
        sides = self.sides(resize, TAPS[name])
        if name in ("fid64", "fid"):
            return sides.frechet()
        if name == "kid":
            sampled, real = self._images.kid_choice()
            return Sides(sides.sampled[sampled], sides.real[real]).kid()
        count = len(sides.sampled if name == "precision" else sides.real)
        note = f"{NEIGHBOURS} neighbours; tolerance: one image on the rim of a neighbourhood, 1/{count}"
        return Measurement(sides.estimate(name), 1.5 / count, note)

    def sides(self, resize: str, tap: int) -> Sides:
        """Return the features of both folders, extracted once for each resizing method and tap."""
        if (resize, tap) not in self._sides:
            folders = self._images.folders
            rows = [
                folders.features(folder, self._extractor, resize, [tap])[tap]
                for folder in (folders.sampled, folders.real)
            ]
            self._sides[resize, tap] = Sides(*rows)
        return self._sides[resize, tap]


def compare_programs(images: Measured, own: OwnMetrics, metrics: Sequence[str], of: str) -> Iterator[Finding]:
    """Compare metrics of TAPS between evalsvc and each program that has them; `of` names the images in findings."""
    for program in PROGRAMS:
        asked = [name for name in metrics if name in program.metrics]
        values = _measure(program, images, asked) if asked else {}
        for name in asked:
            quantity = f"{name} of {of}"
            if isinstance(values, str):
                yield Untried(quantity, program.title, values)
                continue
            measured = own.measure(name, program.resize)
            note = "; ".join(part for part in (program.network, measured.note) if part)
            yield Agreement.of_numbers(quantity, program.title, measured.value, values[name], measured.tolerance, note)


def _measure(program: ImageProgram, images: Measured, metrics: Sequence[str]) -> dict[str, float] | str:
    """Return a program's values, or the reason why there are none."""
    if not program.installed:
        return f"{program.package} is not installed; run: {pip_install('reference')}"
    try:
        return program.measure(images, metrics)
    except Exception as error:  # any error of another program; the other rows of the table are still useful
        return f"{program.package} raised {type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True, eq=False)
class Sides:
    """Features of sampled and of real images."""

    sampled: Rows  # [n, d]
    real: Rows  # [m, d]

    def frechet(self) -> Measurement:
        """Compute |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) directly, even for few images.

        If features x change by ROUNDING · |x|, the root of the distance changes by at most as much, and the distance by
        at most 2 · ROUNDING · |x| · (|μ₁ - μ₂| + √tr Σ₁ + √tr Σ₂). With fewer than d + 1 images Σ₁Σ₂ has zero
        eigenvalues, and the programs add the roots of their rounding errors: √(ε |Σ₁| |Σ₂|) each, twice.
        """
        first, second = self._moments
        d = self.real.shape[1]
        distance = frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
        length = max(math.sqrt(float(np.trace(side.outer)) / side.n) for side in self._moments)
        spread = float(np.linalg.norm(first.mean - second.mean))
        spread += sum(math.sqrt(float(np.trace(side.covariance))) for side in self._moments)
        tolerance = 2 * ROUNDING * length * spread
        note = f"tolerance: features that differ by {ROUNDING:g} of their length"
        if (fewest := min(first.n, second.n)) > d:
            return Measurement(distance, tolerance, note)
        norms = math.prod(float(np.linalg.norm(side.covariance, 2)) for side in self._moments)
        singular = f"{fewest:,} images for {d:,} features: a check of the programs, and no FID to report"
        roots = "roots of the rounding of eigenvalues that are zero"
        return Measurement(distance, tolerance + 2 * d * math.sqrt(EPSILON * norms), f"{singular}; {note}, and {roots}")

    def kid(self) -> Measurement:
        """Compute KID on all of these images together."""
        kernel = float(np.square(self.sampled.astype(np.float64)).sum(1).max() / self.sampled.shape[1] + 1) ** 3
        note = (
            f"a subset of {len(self.sampled):,}; tolerance: kernels of up to {kernel:.2g} that are added up in float32"
        )
        return Measurement(self.estimate("kid"), KID_ROUNDING * kernel, note)

    def estimate(self, name: str, seed: int = 0) -> float:
        """Compute a metric of the catalog as the image tasks do."""
        metric = catalog.load("metrics", name)
        moments = self._moments[1] if metric.needs == "moments" else None
        return float(metric.estimate(FeatureSets(self.sampled, moments, self.real, seed)).value)

    @cached_property
    def _moments(self) -> tuple[Moments, Moments]:
        return Moments.of(self.sampled), Moments.of(self.real)
