"""Estimates of FID, KID, precision and recall by the functions of the package torch-fidelity."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.prdc import GROUPS, Neighbourhoods, neighbourhoods, recall_of
from evalsvc.metrics.reference_program import (
    SEEDS,
    SUBSETS,
    ReferenceProgram,
    Rows,
    Statistics,
    frechet_metrics,
    kid_estimate,
    kid_metric,
    subset_size,
)
from evalsvc.metrics.shares import share_stderr

RELEASE = f"torch-fidelity {version('torch-fidelity')}"

NEIGHBOURS = 3


def frechet_distance(samples: Statistics, real: Statistics) -> float:
    """Compute torch-fidelity's distance. Means of different types, as with imported statistics, become float64."""
    (mean1, cov1), (mean2, cov2) = samples, real
    kind = np.result_type(mean1, mean2)
    sides = ({"mu": mean.astype(kind), "sigma": cov} for mean, cov in ((mean1, cov1), (mean2, cov2)))
    return float(fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])


def kid(sets: FeatureSets) -> Estimate:
    """Compute torch-fidelity's KID, with the standard error of `kid_estimate`."""
    size = subset_size(sets)
    seed = sets.seed % SEEDS
    sides = (_tensor(sets.samples), _tensor(sets.real()))
    results = kid_features_to_metric(*sides, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=seed, verbose=False)
    return kid_estimate(sets, results[KEY_METRIC_KID_MEAN], results[KEY_METRIC_KID_STD])


def precision(sets: FeatureSets) -> Estimate:
    """Compute torch-fidelity's precision, with the error of a share; see `share_stderr`."""
    value, n = _shared(sets)[0], len(sets.samples)
    return Estimate(value, share_stderr(round(value * n), n), n, None, {"k": NEIGHBOURS})


def recall(sets: FeatureSets) -> Estimate:
    """Compute torch-fidelity's recall, with the error of evalsvc's for as many neighbours; see `prdc.recall`."""
    _, value, balls = _shared(sets)
    own = recall_of(balls)
    return Estimate(value, own.stderr, own.n, None, {"k": NEIGHBOURS, "own_value": own.value}, groups=GROUPS)


_by_sets: WeakKeyDictionary[FeatureSets, tuple[float, float, Neighbourhoods]] = WeakKeyDictionary()


def _shared(sets: FeatureSets) -> tuple[float, float, Neighbourhoods]:
    """Return precision and recall of one call of torch-fidelity, with evalsvc's neighbourhoods of the same features."""
    if sets not in _by_sets:
        balls = neighbourhoods(sets, NEIGHBOURS)
        # `save_cpu_ram` computes the same blocks one by one: a quarter of the memory for 40,000 images.
        results = prc_features_to_metric(
            _tensor(sets.samples), _tensor(sets.real()), prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
        )
        _by_sets[sets] = results[KEY_METRIC_PRECISION], results[KEY_METRIC_RECALL], balls
    return _by_sets[sets]


def _tensor(rows: Rows) -> Tensor:
    return torch.from_numpy(np.require(rows, requirements="W"))


def _share(name: str, estimate: Callable[[FeatureSets], Estimate], **more: Any) -> ImageMetric:
    return ImageMetric(
        name, "inception/2048", "features", "fraction", "higher", GROUPS, 1, estimate, program=RELEASE, **more
    )


TORCH_FIDELITY = ReferenceProgram(
    RELEASE,
    frechet_distance,
    {
        **frechet_metrics(RELEASE, frechet_distance),
        "kid": kid_metric(RELEASE, kid),
        "precision": _share("precision", precision, biased=False),
        "recall": _share("recall", recall),
    },
)
"""Source: A. Obukhov et al., github.com/toshas/torch-fidelity."""
