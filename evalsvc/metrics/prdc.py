"""Precision, recall, density and coverage: do samples lie where real images are, and are real ones where samples are?

Each image has a ball whose radius is the distance to its k-th neighbour of its own kind. All four come from one pass
over the distances, in chunks, so that they never exist at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InvalidData
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric

NEIGHBOURS = 5
"""k, as in the paper of density and coverage and its program `prdc`; torch-fidelity takes 3."""
BALLS = 10_000
"""Images of a side that get a ball, at most: of more, a seeded subset. Radii depend on how many there are."""
GROUPS = 20
"""Of samples that are left out one at a time, for the errors of recall and coverage."""
ROWS_AT_ONCE = 1024

Rows = NDArray[Any]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Who lies in whose ball."""

    held: NDArray[np.int64]
    """[n]: balls of real images that a sample lies in."""
    recalled: Flags
    """[GROUPS, balls of real images]: whether the real image lies in the ball of a sample of the group."""
    covered: Flags
    """[GROUPS, balls of real images]: whether the ball holds a sample of the group."""
    sampled_balls: int
    neighbours: int


def neighbourhoods(sets: FeatureSets, neighbours: int = NEIGHBOURS, balls: int = BALLS) -> Neighbourhoods:
    """Balls of at most `balls` images a side; every sample is looked up in the real ones.

    Raises:
        InvalidData: no more images than `neighbours` on a side, or the reference's features are not known.
    """
    real, samples = sets.real(), sets.samples
    if min(len(real), len(samples)) <= neighbours:
        raise InvalidData(
            f"{len(samples):,} samples and {len(real):,} real images have no {neighbours} neighbours each; give more"
        )
    random = np.random.default_rng(sets.seed)
    real = real[_subset(len(real), balls, random)]
    chosen = _subset(len(samples), balls, random)
    # Distances come from differences of squares, so what all images share is taken off first.
    centre = real.mean(0)
    real, samples = real - centre, samples - centre
    radii = _radii(real, neighbours)
    own_radii = np.full(len(samples), -np.inf, real.dtype)
    own_radii[chosen] = _radii(samples[chosen], neighbours)
    groups = np.full(len(samples), -1)
    groups[chosen] = np.arange(len(chosen)) * GROUPS // len(chosen)
    held = np.empty(len(samples), np.int64)
    recalled, covered = np.zeros((2, GROUPS, len(real)), np.bool_)
    for start in range(0, len(samples), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squares = squared_distances(samples[part], real)
        inside = squares < radii
        held[part] = inside.sum(1)
        reached = squares < own_radii[part, None]
        for group in set(groups[part].tolist()) - {-1}:
            recalled[group] |= reached[groups[part] == group].any(0)
            covered[group] |= inside[groups[part] == group].any(0)
    return Neighbourhoods(held, recalled, covered, len(chosen), neighbours)


def squared_distances(rows: Rows, others: Rows) -> Rows:  # [a, b]
    """By |x|² + |y|² - 2 x·y; what rounding makes negative is 0."""
    squares = rows @ others.T
    squares *= -2
    squares += np.square(rows).sum(1)[:, None]
    squares += np.square(others).sum(1)
    distances: Rows = np.maximum(squares, 0, out=squares)
    return distances


def precision(sets: FeatureSets) -> Estimate:
    """The share of samples that lie in some real image's ball. Its error is binomial, over the samples.

    Source: T. Kynkäänniemi et al., arXiv 1904.06991, with the strict inequality of `prdc`.
    """
    found = _shared(sets)
    return Estimate.of_images(found.held > 0, **_details(found))


def density(sets: FeatureSets) -> Estimate:
    """In how many real images' balls a sample lies on average, over k; above 1 where samples crowd.

    Source: M. Naeem et al., arXiv 2002.09797, equation 4.
    """
    found = _shared(sets)
    return Estimate.of_images(found.held / found.neighbours, **_details(found))


def recall(sets: FeatureSets) -> Estimate:
    """The share of real images that lie in some sample's ball. Its error leaves out groups of samples, in their order.

    Source: as `precision`; B. Efron, C. Stein, Annals of Statistics 9, 1981, for the jackknife.
    """
    found = _shared(sets)
    return _share_of_real(found, found.recalled)


def coverage(sets: FeatureSets) -> Estimate:
    """The share of real images whose ball holds a sample. Its error leaves out groups of samples, in their order.

    Source: as `density`, equation 5.
    """
    found = _shared(sets)
    return _share_of_real(found, found.covered)


def _share_of_real(found: Neighbourhoods, by_group: Flags) -> Estimate:
    groups = by_group.sum(0)
    without = ((groups - by_group) > 0).mean(1)
    stderr = math.sqrt((GROUPS - 1) / GROUPS * float(np.square(without - without.mean()).sum()))
    details = {**_details(found), "error_over": f"{GROUPS} groups of samples"}
    return Estimate(float((groups > 0).mean()), stderr, found.sampled_balls, None, details)


_found: WeakKeyDictionary[FeatureSets, Neighbourhoods] = WeakKeyDictionary()


def _shared(sets: FeatureSets) -> Neighbourhoods:
    """The neighbourhoods of these sets, computed by the first of the four metrics and forgotten with the sets."""
    if sets not in _found:
        _found[sets] = neighbourhoods(sets)
    return _found[sets]


def _subset(n: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(n) if n <= most else np.sort(random.choice(n, most, replace=False))


def _radii(rows: Rows, neighbours: int) -> Rows:
    """Squared distance of each of `rows` to its k-th neighbour among them, itself not counted."""
    radii = np.empty(len(rows), rows.dtype)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squares = squared_distances(rows[part], rows)
        squares[np.arange(len(squares)), np.arange(start, start + len(squares))] = 0
        radii[part] = np.partition(squares, neighbours, axis=1)[:, neighbours]
    return radii


def _details(found: Neighbourhoods) -> dict[str, Any]:
    return {"k": found.neighbours, "real_balls": found.recalled.shape[1], "sampled_balls": found.sampled_balls}


def _metric(name: str, estimate: Callable[[FeatureSets], Estimate]) -> ImageMetric:
    unit = "ratio" if name == "density" else "fraction"
    # Precision and density are means over the sampled images, given the real ones.
    biased = name in ("recall", "coverage")
    return ImageMetric(name, "inception/2048", "features", unit, "higher", GROUPS, 1, estimate, biased)


PRECISION = _metric("precision", precision)
RECALL = _metric("recall", recall)
DENSITY = _metric("density", density)
COVERAGE = _metric("coverage", coverage)
