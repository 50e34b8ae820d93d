"""Metrics and intervals against torch-fidelity, clean-fid, prdc and scipy: live where installed, else golden values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module, metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.intervals import Spread, confidence_interval
from evalsvc.metrics.kid import kid
from evalsvc.metrics.prdc import neighbourhoods
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.student import critical_value
from evalsvc.spec import catalog
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import Golden

Rows = NDArray[np.float64]

EXACT = 1e-9
"""Relative, between two sums in float64."""


def verify_metrics(golden: Golden) -> Iterator[Agreement]:
    """Compare image metrics of 256 sampled and 256 real images by their first 64 features."""
    tensors = golden.tensors("features")
    samples, real = (tensors[name].double().numpy() for name in ("samples", "real"))
    for quantity, value in own_metrics(samples, real).items():
        program, name = quantity.split("/")
        yield _compared(golden, name, program, value, EXTERNAL.get(quantity), (samples, real))


def own_metrics(samples: Rows, real: Rows) -> dict[str, float]:
    """Compute each metric by evalsvc, by the name of its golden value: `torch-fidelity/fid`, `prdc/density`, …"""
    sets: Any = FeatureSets(samples, Moments.of(real), real)  # type: ignore[arg-type]
    nearest = neighbourhoods(sets, neighbours=3)
    distance = catalog.load("metrics", "fid64").estimate(sets).value
    return {
        "torch-fidelity/fid": distance,
        "clean-fid/fid": distance,
        "torch-fidelity/kid": kid(sets).value,
        "torch-fidelity/precision": float((nearest.held > 0).mean()),
        "torch-fidelity/recall": float(nearest.recalled.mean()),
        **{
            f"prdc/{name}": catalog.load("metrics", name).estimate(sets).value
            for name in ("precision", "recall", "density", "coverage")
        },
    }


def _compared(
    golden: Golden,
    name: str,
    program: str,
    value: float,
    compute: Callable[[Rows, Rows], float] | None,
    features: tuple[Rows, Rows],
) -> Agreement:
    theirs, whose, note = golden.values["features"][f"{program}/{name}"], golden.program(program), "golden value"
    if compute is not None and (version := installed(program)):
        try:
            theirs, whose, note = compute(*features), f"{program} {version}", "computed now"
        except ImportError as error:
            note = f"golden value; {program} cannot be imported: {error}"
    tolerance = max(EXACT, EXACT * abs(theirs)) if name in ("fid", "kid") else 1e-6
    return Agreement.of_numbers(f"{name} of 64 features, {program}", whose, value, theirs, tolerance, note)


def installed(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _external(module: str, name: str) -> Any:
    """A function of a package that need not be installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(import_module(module), name)


def _fidelity_fid(samples: Rows, real: Rows) -> float:
    module = "torch_fidelity.metric_fid"
    statistics = [_external(module, "fid_features_to_statistics")(torch.from_numpy(part)) for part in (samples, real)]
    found = _external(module, "fid_statistics_to_metric")(*statistics, verbose=False)
    return float(found["frechet_inception_distance"])


def _clean_fid(samples: Rows, real: Rows) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scipy, whose root has an argument that goes away
        return float(_external("cleanfid.fid", "fid_from_feats")(samples, real))


def _fidelity_kid(samples: Rows, real: Rows) -> float:
    found = _external("torch_fidelity.metric_kid", "kid_features_to_metric")(
        torch.from_numpy(samples),
        torch.from_numpy(real),
        kid_subsets=1,
        kid_subset_size=len(samples),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    return float(found["kernel_inception_distance_mean"])


def _fidelity_nearest(name: str, samples: Rows, real: Rows) -> float:
    compute = _external("torch_fidelity.metric_prc", "prc_features_to_metric")
    parts = torch.from_numpy(samples), torch.from_numpy(real)
    return float(compute(*parts, prc_neighborhood=3, prc_batch_size=len(samples), verbose=False)[name])


EXTERNAL: Mapping[str, Callable[[Rows, Rows], float]] = {
    "torch-fidelity/fid": _fidelity_fid,
    "clean-fid/fid": _clean_fid,
    "torch-fidelity/kid": _fidelity_kid,
    "torch-fidelity/precision": partial(_fidelity_nearest, "precision"),
    "torch-fidelity/recall": partial(_fidelity_nearest, "recall"),
}
"""Functions that compute a metric by the program itself. prdc writes to stdout, so its golden values are taken."""


def verify_statistics(golden: Golden) -> Iterator[Agreement]:
    """Compare critical values of Student's t, and the interval of a mean of 12 numbers."""
    values = golden.values["student"]
    levels, degrees, expected = zip(*values["critical"], strict=True)
    found = [critical_value(level, dof) for level, dof in zip(levels, degrees, strict=True)]
    relative = [ours / theirs for ours, theirs in zip(found, expected, strict=True)]
    program = golden.program("scipy")
    yield Agreement.of_arrays("Student's t, 20 values", program, relative, np.ones(len(relative)), 1e-7, "relative")
    sample = values["sample"]
    ratio = ratio_of_sums(sample, [1.0] * len(sample))
    assert ratio is not None, "12 items have a mean"
    assert ratio.stderr is not None, "and an error"
    interval = confidence_interval(ratio.value, Spread(ratio.stderr, len(sample) - 1))
    yield Agreement.of_arrays(
        "interval of a mean of 12", program, [interval.low, interval.high], values["interval"], 1e-7
    )
