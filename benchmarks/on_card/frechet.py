"""The Fréchet distance of 2,048 features and its standard error in seconds, where they run today: on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import interleaved, medians, seconds
from torch import Tensor

from evalsvc.metrics.frechet import Array, Linearised, Moments, frechet_distance, frechet_shares
from on_card.kit import Kit, Row, at_most, figure, left_out
from on_card.twins import missing

ERROR = 1e-6
"""Relative, of distances by different decompositions in float64."""
SHARES_ERROR = 1e-4
"""Of the distance that comes with shares: what is rounding among squared roots is left out of it."""


@dataclass(frozen=True)
class Case:
    dimensions: int
    images: int
    """Of each side; more than twice the dimensions, so that both covariances have full rank."""


FULL = Case(2_048, 5_000)
HALF = Case(1_024, 2_500)
"""What scipy has time for."""
SMALL = Case(64, 400)


def run(kit: Kit) -> Iterator[Row]:
    """Compare the distance with plain decompositions on the device and with scipy's root, then time them."""
    case = SMALL if kit.small else FULL
    features, reference = _draw(case, 1, 1.1), Moments.of(_draw(case, 2, 1.0))
    tried = kit.touched(torch.from_numpy(features)).numpy()
    moments = Moments.of(tried)
    where = kit.device.type
    sides: dict[str, Callable[[], float]] = {
        "evalsvc on the CPU": lambda: _our_distance(moments, reference),
        f"plain on {where}": lambda: _plain_distance(Moments.of(features), reference, kit.device),
    }
    distance, plain = (side() for side in sides.values())  # warm-up
    error = abs(distance - plain) / plain
    yield at_most(f"distance against plain eigenvalues on {where}", error, ERROR, distance=distance)
    for name, taken in medians(interleaved(sides, 1)).items():
        yield figure(f"distance, {case.dimensions:,} features, {name}", taken, "s")
    found: list[Linearised] = []
    taken = seconds(lambda: found.append(frechet_shares(tried, reference)))
    shares = found[0].shares
    stderr = float(shares.std(ddof=1)) / math.sqrt(len(shares))
    yield at_most("distance that comes with its error", abs(found[0].value - plain) / plain, SHARES_ERROR)
    yield figure(f"distance and error, {case.images:,} images, evalsvc", taken, "s", stderr=stderr)
    yield from _against_scipy(kit, SMALL if kit.small else HALF)


def _against_scipy(kit: Kit, case: Case) -> Iterator[Row]:
    if lacking := missing("scipy"):
        yield left_out("against scipy's root of the product", lacking)
        return
    import scipy.linalg  # noqa: F401  # so that loading it is not timed

    features, second = _draw(case, 1, 1.1), Moments.of(_draw(case, 2, 1.0))
    tried, first = Moments.of(kit.touched(torch.from_numpy(features)).numpy()), Moments.of(features)
    values: dict[str, float] = {}
    times = {
        name: seconds(lambda name=name, side=side: values.update({name: side()}))
        for name, side in (
            ("evalsvc", lambda: _our_distance(tried, second)),
            ("scipy", lambda: _scipy_distance(first, second)),
        )
    }
    error = abs(values["evalsvc"] - values["scipy"]) / values["scipy"]
    yield at_most("distance against scipy's root of the product", error, ERROR)
    yield figure(
        f"scipy's time over ours, {case.dimensions:,} features", times["scipy"] / times["evalsvc"], "x", **times
    )


def _our_distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def _draw(case: Case, seed: int, scale: float) -> Array:  # [n, d]
    """Return rows that are non-negative, skewed and correlated, with a spectrum that falls by six orders."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(case.dimensions, case.dimensions)) / math.sqrt(case.dimensions)
    spread = np.geomspace(1, 1e-3, case.dimensions)
    return (random.gamma(0.5, scale, (case.images, case.dimensions)) * spread) @ mixing


def _plain_distance(first: Moments, second: Moments, device: torch.device) -> float:
    """Compute the distance in float64 on `device` from the eigenvalues of Σ₂^½ Σ₁ Σ₂^½."""
    sigma1, sigma2 = (torch.from_numpy(side.covariance).to(device) for side in (first, second))
    gap = torch.from_numpy(first.mean - second.mean).to(device)
    values, vectors = torch.linalg.eigh(sigma2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sigma1 @ root).clamp_min(0).sqrt().sum()
    return float(gap @ gap + sigma1.trace() + sigma2.trace() - 2 * cross)


def _scipy_distance(first: Moments, second: Moments) -> float:
    from scipy.linalg import sqrtm

    gap = first.mean - second.mean
    root = sqrtm(first.covariance @ second.covariance)
    return float(gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.trace(root.real))
