"""The Fréchet distance of two covariances, and its standard error, against the formulas that the field uses.

Distances take turns in one process: ours, scipy's square root of the product (clean-fid, pytorch-fid) and numpy's
eigenvalues of it (torch-fidelity's own function). Before anything is timed their values are compared. The error comes
from one decomposition here (`frechet_shares`); beside it stands the jackknife that leaves out 20 groups.

    python benchmarks/frechet.py [--quick]

Prints a card, a table and as last line one JSON document; `ratios` are the peer's time over ours, above 1 when ours is
faster.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from scipy.linalg import sqrtm
from side_by_side import gemm_rate, interleaved, machine, medians, print_last_line, ratios
from torch_fidelity.metric_fid import fid_statistics_to_metric

from evalsvc.metrics.frechet import Array, Moments, frechet_distance, frechet_shares

OURS, SCIPY, TORCH_FIDELITY = "evalsvc", "scipy sqrtm", "torch-fidelity"
SHARES, JACKKNIFE = "evalsvc shares", "jackknife of 20 groups"
GROUPS = 20
TOLERANCE = 1e-6
"""Of the values, relative to ours."""


@dataclass(frozen=True)
class Case:
    dimensions: int
    images: int
    """Of each side; more than twice the dimensions, so that both covariances have full rank."""
    repetitions: int
    error_repetitions: int


FULL = Case(2048, 5000, repetitions=3, error_repetitions=1)
QUICK = Case(64, 400, repetitions=3, error_repetitions=3)


def draw_features(case: Case, seed: int, scale: float) -> Array:
    """Non-negative, skewed and correlated, with a spectrum that falls by six orders of magnitude, as Inception's."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(case.dimensions, case.dimensions)) / math.sqrt(case.dimensions)
    spread = np.geomspace(1, 1e-3, case.dimensions)
    return (random.gamma(0.5, scale, (case.images, case.dimensions)) * spread) @ mixing


def scipy_distance(first: Moments, second: Moments) -> float:
    """As clean-fid computes it."""
    gap = first.mean - second.mean
    root = sqrtm(first.covariance @ second.covariance)
    return float(gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.trace(root.real))


def torch_fidelity_distance(first: Moments, second: Moments) -> float:
    statistics = ({"mu": side.mean, "sigma": side.covariance} for side in (first, second))
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def our_distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def shares_error(features: Array, reference: Moments) -> float:
    shares = frechet_shares(features, reference).shares
    return float(shares.std(ddof=1)) / math.sqrt(len(shares))


def jackknife_error(features: Array, reference: Moments) -> float:
    """The error of groups that are left out in turn, B. Efron, C. Stein, Annals of Statistics 9, 1981."""
    groups = [Moments.of(part) for part in np.array_split(features, GROUPS)]
    total = reduce(add, groups)
    without = np.array([our_distance(total - group, reference) for group in groups])
    return math.sqrt((GROUPS - 1) / GROUPS * float(np.square(without - without.mean()).sum()))


def distances_apart(sides: dict[str, Callable[[], float]]) -> float:
    values = {name: side() for name, side in sides.items()}
    ours = values[OURS]
    apart = max(abs(value - ours) / ours for value in values.values())
    assert apart < TOLERANCE, values
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small case, to see that it works")
    case = QUICK if parser.parse_args().quick else FULL
    features, real = draw_features(case, 1, 1.1), draw_features(case, 2, 1.0)
    first, second = Moments.of(features), Moments.of(real)
    sides: dict[str, Callable[[], float]] = {
        OURS: lambda: our_distance(first, second),
        SCIPY: lambda: scipy_distance(first, second),
        TORCH_FIDELITY: lambda: torch_fidelity_distance(first, second),
    }
    errors: dict[str, Callable[[], float]] = {
        SHARES: lambda: shares_error(features, second),
        JACKKNIFE: lambda: jackknife_error(features, second),
    }
    apart = distances_apart(sides)
    stderr = {name: side() for name, side in errors.items()} if case is QUICK else {}
    times = interleaved(sides, case.repetitions)
    error_times = interleaved(errors, case.error_repetitions)
    d = case.dimensions
    print(f"machine   {machine()}")
    print(f"case      {case.images:,} images a side, {d:,} features, float64; values agree to {apart:.1e}")
    if case is FULL:
        rate = gemm_rate(torch.float64)
        print(f"products  {rate / 1e9:.0f} Gflop/s; one of d x d takes {2 * d**3 / rate:.2f} s")
    print()
    for name, value in (medians(times) | medians(error_times)).items():
        print(f"{name:24}{value:10.3f} s")
    found = ratios(times, OURS) | ratios(error_times, SHARES)
    print_last_line("frechet", found, seconds=medians(times) | medians(error_times), difference=apart, stderr=stderr)


if __name__ == "__main__":
    main()
