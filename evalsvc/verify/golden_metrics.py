"""Comparing metrics and intervals with torch-fidelity, clean-fid, prdc and scipy: with live programs if installed,
otherwise with golden values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import MissingPackage
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets, ImageMetric
from evalsvc.metrics.intervals import Spread, confidence_interval
from evalsvc.metrics.kid import kid
from evalsvc.metrics.prdc import neighbourhoods
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.student import critical_value
from evalsvc.spec import catalog
from evalsvc.verify.agreement import Agreement, installed
from evalsvc.verify.golden_files import Golden

Rows = NDArray[np.float64]

LIVE = ("torch-fidelity", "clean-fid")
"""Programs that compute metrics live if they are installed. prdc prints to stdout, so its golden values are used."""

NAMES = {"fid": "fid64"}

EXACT = 1e-9
"""Relative tolerance between two sums in float64."""


def verify_metrics(golden: Golden) -> Iterator[Agreement]:
    """Compare image metrics of 256 sampled and 256 real images by their first 64 features."""
    tensors = golden.tensors("features")
    samples, real = (tensors[name].double().numpy() for name in ("samples", "real"))
    sets = feature_sets(samples, real)
    for quantity, value in own_metrics(sets).items():
        program, name = quantity.split("/")
        yield _compared(golden, name, program, value, sets)


def feature_sets(samples: Rows, real: Rows) -> FeatureSets:
    """Return features in float64, whose precision the programs keep, as in the golden values."""
    return FeatureSets(samples, Moments.of(real), real)  # type: ignore[arg-type]


def own_metrics(sets: FeatureSets) -> dict[str, float]:
    """Compute each metric by evalsvc, by the name of its golden value: `torch-fidelity/fid`, `prdc/density`, …"""
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


def _compared(golden: Golden, name: str, program: str, value: float, sets: FeatureSets) -> Agreement:
    expected, whose, note = golden.values["features"][f"{program}/{name}"], golden.program(program), "golden value"
    if program in LIVE and (version := installed(program)):
        try:
            metrics: Mapping[str, ImageMetric] = catalog.load("programs", program).metrics
            expected = metrics[NAMES.get(name, name)].estimate(sets).value
            whose, note = f"{program} {version}", "computed now"
        except (ImportError, MissingPackage) as error:
            note = f"golden value; {program} cannot be imported: {error}"
    tolerance = max(EXACT, EXACT * abs(expected)) if name in ("fid", "kid") else 1e-6
    return Agreement.of_numbers(f"{name} of 64 features, {program}", whose, value, expected, tolerance, note)


def verify_statistics(golden: Golden) -> Iterator[Agreement]:
    """Compare critical values of Student's t, and the interval of a mean of 12 numbers."""
    values = golden.values["student"]
    levels, degrees, expected = zip(*values["critical"], strict=True)
    values_found = [critical_value(level, dof) for level, dof in zip(levels, degrees, strict=True)]
    relative = [value / golden_value for value, golden_value in zip(values_found, expected, strict=True)]
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
