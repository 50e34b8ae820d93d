"""Precision, recall, density and coverage: the share of samples among real images, and of real images among samples.

Each image has a ball whose radius is the distance to its k-th neighbour within its set. All four metrics come from one
pass over the distances, in chunks, so that the full matrix of distances never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from evalsvc.errors import InvalidData
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.shares import share_stderr

NEIGHBOURS = 5
"""Number k of neighbours, as in the paper of density and coverage and its program `prdc`; torch-fidelity uses 3."""
BALLS = 10_000
"""Largest number of images per side with a ball; of more images, a seeded subset. Radii depend on the number of balls.
"""
GROUPS = 20
"""Number of groups of samples in the jackknife of recall and coverage: a seeded random division."""
ADM_NEIGHBOURS = 3
"""Number of neighbours in guided-diffusion's evaluator."""
NEAREST = 4
"""Number of neighbours kept per sample, in multiples of k, to find the k-th neighbour without a group."""
CHUNK_ROWS = 1024
CHUNK_DISTANCES = 1 << 24
"""Largest number of distances in memory at a time, with several arrays of their size."""

Rows = NDArray[Any]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]
Distances = Callable[[Rows, Rows], Rows]


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Membership of images in balls."""

    held: NDArray[np.int64]
    """Number of real images' balls that hold each sample, [n]."""
    recalled: Flags
    """Whether each real image lies in the ball of a sample, [balls of real images]."""
    recalled_without: Flags
    """Recall without each group, whose absence enlarges the balls of other samples, [GROUPS, balls of real images]."""
    covered: Flags
    """Whether each real image's ball holds a sample, [balls of real images]."""
    covered_without: Flags
    """Coverage without each group, [GROUPS, balls of real images]."""
    sampled_balls: int
    neighbours: int


def neighbourhoods(
    sets: FeatureSets, neighbours: int = NEIGHBOURS, balls: int = BALLS, *, as_adm: bool = False
) -> Neighbourhoods:
    """Find the real images' balls that hold each sample and the reverse, with at most `balls` images per side. With
    `as_adm`, distances are those of `rounded_distances`, and a ball holds the images on its border."""
    real, samples = sets.real(), sets.samples
    if min(len(real), len(samples)) <= neighbours:
        raise InvalidData(f"{len(samples):,} samples and {len(real):,} real images; give more than {neighbours} each")
    random = np.random.default_rng(sets.seed)
    real = real[_subset(len(real), balls, random)]
    chosen = _subset(len(samples), balls, random)
    distances = rounded_distances if as_adm else squared_distances
    if not as_adm:
        # Subtract what all images share, since distances come from differences of squares.
        centre = real.mean(0)
        real, samples = real - centre, samples - centre
    radii = _radii(real, neighbours, distances)
    sample_balls = _SampleBalls.of(samples, chosen, neighbours, random, distances)
    if as_adm:  # d ≤ r where d is below the next number
        for limits in (radii, sample_balls.radii, sample_balls.radii_without):
            np.nextafter(limits, np.inf, out=limits)
    held = np.empty(len(samples), np.int64)
    recalled, grown, covered = np.zeros((3, GROUPS, len(real)), np.bool_)
    for part in _chunks(len(samples), len(real)):
        squares = distances(samples[part], real)
        inside = squares < radii
        held[part] = inside.sum(1)
        reached = squares < sample_balls.radii[part, None]
        for group, rows in _by_group(sample_balls.groups[part]):
            recalled[group] |= reached[rows].any(0)
            covered[group] |= inside[rows].any(0)
        for nearest in range(neighbours):
            reached = squares < sample_balls.radii_without[part, nearest, None]
            for group, rows in _by_group(sample_balls.missed[part, nearest]):
                grown[group] |= reached[rows].any(0)
    return Neighbourhoods(
        held,
        np.asarray(recalled.any(0)),
        _without_each(recalled) | grown,
        np.asarray(covered.any(0)),
        _without_each(covered),
        len(chosen),
        neighbours,
    )


@dataclass(frozen=True, eq=False)
class _SampleBalls:
    groups: NDArray[np.int64]
    """Group of each sample with a ball; -1 for other samples, [n]."""
    radii: Rows
    """Squared radii; -inf for samples without a ball, [n]."""
    missed: NDArray[np.int64]
    """Group of each sample's nearest, second … neighbour; -1 for the sample's own or an earlier group, [n, k]."""
    radii_without: Rows
    """Squared radius without the group in `missed`, [n, k]."""

    @classmethod
    def of(cls, samples: Rows, chosen: Indices, neighbours: int, random: Generator, apart: Distances) -> _SampleBalls:
        n = len(samples)
        division = random.permutation(np.arange(len(chosen)) * GROUPS // len(chosen))
        groups, missed = np.full(n, -1), np.full((n, neighbours), -1)
        radii = np.full(n, -np.inf, samples.dtype)
        radii_without = np.full((n, neighbours), -np.inf, samples.dtype)
        balls = samples[chosen]
        for part in _chunks(len(balls), len(balls)):
            squares = apart(balls[part], balls)
            squares[np.arange(len(squares)), np.arange(part.start, part.start + len(squares))] = -1
            # Enough neighbours that k remain without any group, except by rare chance.
            count = min(NEAREST * neighbours + 1, squares.shape[1])
            nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
            nearest = np.take_along_axis(nearest, np.take_along_axis(squares, nearest, 1).argsort(1), 1)[:, 1:]
            distances, neighbour_groups = np.take_along_axis(squares, nearest, 1), division[nearest]
            rows = chosen[part]
            radii[rows] = distances[:, neighbours - 1]
            for place in range(neighbours):
                group = neighbour_groups[:, place]
                known = (group == division[part]) | (neighbour_groups[:, :place] == group[:, None]).any(1)
                missed[rows, place] = np.where(known, -1, group)
                left = (neighbour_groups != group[:, None]).cumsum(1)
                reached = np.where(left[:, -1] >= neighbours, (left >= neighbours).argmax(1), left.shape[1] - 1)
                radii_without[rows, place] = distances[np.arange(len(rows)), reached]
        groups[chosen] = division
        return cls(groups, radii, missed, radii_without)


def _by_group(groups: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for group in set(groups.tolist()) - {-1}:
        yield group, np.flatnonzero(groups == group)


def _without_each(by_group: Flags) -> Flags:  # [GROUPS, m], both
    others: Flags = by_group.sum(0) > by_group
    return others


def squared_distances(rows: Rows, others: Rows) -> Rows:  # [a, b]
    """Compute squared distances by |x|² + |y|² - 2 x·y; negative results of rounding become 0."""
    squares = rows @ others.T
    squares *= -2
    squares += np.square(rows).sum(1)[:, None]
    squares += np.square(others).sum(1)
    distances: Rows = np.maximum(squares, 0, out=squares)
    return distances


def rounded_distances(rows: Rows, others: Rows) -> Rows:  # [a, b]
    """Compute squared distances as `squared_distances`, with every step rounded to float16 unless one overflows.

    Those of Inception's features are some hundreds, where float16 has steps of 1/16 to 1/4: many are equal to a radius.
    Sums are in float32, as NumPy's of float16. Source: guided-diffusion, `evaluations/evaluator.py`, `DistanceBlock`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        half = [side.astype(np.float16) for side in (rows, others)]
        lengths = [np.square(side).astype(np.float32).sum(1).astype(np.float16) for side in half]
        products = (half[0].astype(np.float32) @ half[1].astype(np.float32).T).astype(np.float16)
        products *= np.float16(-2)
        products += lengths[0][:, None]
        products += lengths[1]
    if not np.isfinite(products).all():
        return squared_distances(rows, others)
    return np.maximum(products, 0, out=products).astype(np.float32)


def precision(sets: FeatureSets, as_adm: bool = False) -> Estimate:
    """Compute the share of samples that lie in any real image's ball.

    The real images and their balls are treated as fixed. The error is that of a share; see `share_stderr`.

    Source: T. Kynkäänniemi et al., arXiv 1904.06991, with the strict inequality of `prdc`.
    """
    balls = _shared(sets, as_adm)
    return Estimate.of_images(balls.held > 0, **_details(balls))


def density(sets: FeatureSets) -> Estimate:
    """Compute the mean number of real images' balls that hold a sample, over k; above 1 where samples crowd.

    The real images and their balls are treated as fixed. The error is that of a mean.

    Source: M. Naeem et al., arXiv 2002.09797, equation 4.
    """
    balls = _shared(sets)
    return Estimate.of_images(balls.held / balls.neighbours, **_details(balls))


def recall(sets: FeatureSets, as_adm: bool = False) -> Estimate:
    """Compute the share of real images that lie in any sample's ball.

    The real images are treated as fixed. The error is the jackknife over GROUPS random groups of samples: a group's
    balls are left out, and the other balls get the radii that they have without the group. In simulations the error is
    1.2 to 1.8 times the spread over samples, with the largest ratio where recall is near 1.

    Source: as `precision`; B. Efron, C. Stein, Annals of Statistics 9, 1981, for the jackknife.
    """
    return recall_of(_shared(sets, as_adm))


def recall_of(balls: Neighbourhoods) -> Estimate:
    """Compute `recall` from known neighbourhoods."""
    return _share_of_real(balls, balls.recalled, balls.recalled_without)


def coverage(sets: FeatureSets) -> Estimate:
    """Compute the share of real images whose ball holds a sample.

    The real images and their balls are treated as fixed. The error is the jackknife over GROUPS random groups of
    samples, 1.0 to 2.1 times the spread over samples in simulations.

    Source: as `density`, equation 5; the jackknife as `recall`.
    """
    balls = _shared(sets)
    return _share_of_real(balls, balls.covered, balls.covered_without)


def _share_of_real(balls: Neighbourhoods, flags: Flags, without_group: Flags) -> Estimate:
    without = without_group.mean(1)
    stderr: float | None = math.sqrt((GROUPS - 1) / GROUPS * float(np.square(without - without.mean()).sum()))
    if stderr == 0:
        # No group matters: all real images are recalled, or none is, which does not make the share certain.
        fewer = min(len(flags), balls.sampled_balls)
        stderr = share_stderr(round(float(flags.mean()) * fewer), fewer)
    return Estimate(float(flags.mean()), stderr, balls.sampled_balls, None, _details(balls), groups=GROUPS)


_by_sets: WeakKeyDictionary[FeatureSets, dict[bool, Neighbourhoods]] = WeakKeyDictionary()


def _shared(sets: FeatureSets, as_adm: bool = False) -> Neighbourhoods:
    known = _by_sets.setdefault(sets, {})
    if as_adm not in known:
        every = max(len(sets.samples), len(sets.real()))
        known[as_adm] = neighbourhoods(sets, ADM_NEIGHBOURS, every, as_adm=True) if as_adm else neighbourhoods(sets)
    return known[as_adm]


def _subset(n: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(n) if n <= most else np.sort(random.choice(n, most, replace=False))


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, min(CHUNK_ROWS, CHUNK_DISTANCES // columns))
    return (slice(start, start + size) for start in range(0, rows, size))


def _radii(rows: Rows, neighbours: int, measured: Distances) -> Rows:
    radii = np.empty(len(rows), rows.dtype)
    for part in _chunks(len(rows), len(rows)):
        squares = measured(rows[part], rows)
        squares[np.arange(len(squares)), np.arange(part.start, part.start + len(squares))] = 0
        radii[part] = np.partition(squares, neighbours, axis=1)[:, neighbours]
    return radii


def _details(balls: Neighbourhoods) -> dict[str, int]:
    return {"k": balls.neighbours, "real_balls": len(balls.covered), "sampled_balls": balls.sampled_balls}


_metric = partial(
    ImageMetric, features="inception/2048", needs="features", unit="fraction", direction="higher", min_images=GROUPS
)
# Precision and density are means over the sampled images, given the real ones.
PRECISION = _metric("precision", version=2, estimate=precision, biased=False)
RECALL = _metric("recall", version=2, estimate=recall)
DENSITY = _metric("density", unit="ratio", version=1, estimate=density, biased=False)
COVERAGE = _metric("coverage", version=2, estimate=coverage)
_as_adm = partial(replace, version=1, on_request=True)
PRECISION_K3 = _as_adm(PRECISION, name="precision_k3", estimate=partial(precision, as_adm=True))
RECALL_K3 = _as_adm(RECALL, name="recall_k3", estimate=partial(recall, as_adm=True))
"""As guided-diffusion's evaluator. Source: P. Dhariwal, A. Nichol, arXiv 2105.05233."""
