"""Estimates of FID and KID by the functions of the package clean-fid."""

from __future__ import annotations

import inspect
import sys
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version

import numpy as np
from cleanfid import fid
from scipy import linalg

from evalsvc.errors import InvalidData, MissingPackage
from evalsvc.metrics.image_metric import Estimate, FeatureSets
from evalsvc.metrics.reference_program import (
    SEEDS,
    SUBSET_SIZE,
    SUBSETS,
    ReferenceProgram,
    Statistics,
    frechet_metrics,
    kid_estimate,
    kid_metric,
    subset_size,
)

RELEASE = f"clean-fid {version('clean-fid')}"

SPREAD_SUBSETS = 20
"""Number of additional subsets that measure the spread of KID, for which clean-fid reports no spread."""

if "disp" not in inspect.signature(linalg.sqrtm).parameters:
    raise MissingPackage(
        f"{RELEASE} calls `scipy.linalg.sqrtm` with an argument that scipy {version('scipy')} does not have; run: pip "
        "install 'scipy<1.18'"
    )


def frechet_distance(samples: Statistics, real: Statistics) -> float:
    """Compute clean-fid's Fréchet distance."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        # scipy deprecates the argument `disp` of sqrtm.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return float(fid.frechet_distance(*samples, *real))
        except ValueError as error:
            reason = f"{RELEASE} computes no distance from these features: {error}; sample more images"
            raise InvalidData(reason) from None


def kid(sets: FeatureSets) -> Estimate:
    """Compute clean-fid's KID. NumPy's global generator, from which clean-fid draws, is seeded and restored."""
    samples, real, size = sets.samples, sets.real(), subset_size(sets)
    before = np.random.get_state()
    np.random.seed(sets.seed % SEEDS)
    try:
        value = fid.kernel_distance(samples, real, num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE)
        alone = [fid.kernel_distance(samples, real, num_subsets=1, max_subset_size=size) for _ in range(SPREAD_SUBSETS)]
    finally:
        np.random.set_state(before)
    return kid_estimate(sets, value, float(np.std(alone, ddof=1)))


CLEAN_FID = ReferenceProgram(
    RELEASE, frechet_distance, {**frechet_metrics(RELEASE, frechet_distance), "kid": kid_metric(RELEASE, kid)}
)
"""Source: G. Parmar et al., On Aliased Resizing and Surprising Subtleties in GAN Evaluation, arXiv 2104.11222."""
