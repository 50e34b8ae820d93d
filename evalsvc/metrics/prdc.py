"""Precision, recall, density and coverage: do samples lie where real images are, and are real ones where samples are?

Each image has a ball whose radius is the distance to its k-th neighbour of its own kind. All four come from one pass
over the distances, in chunks, so that they never exist at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from evalsvc.errors import InvalidData
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.shares import share_stderr

NEIGHBOURS = 5
"""k, as in the paper of density and coverage and its program `prdc`; torch-fidelity takes 3."""
BALLS = 10_000
"""Images of a side that get a ball, at most: of more, a seeded subset. Radii depend on how many there are."""
GROUPS = 20
"""Of samples that are left out one at a time, for the errors of recall and coverage: a seeded random division."""
NEAREST = 4
"""Times k neighbours are kept of each sample, to find its k-th one without a group."""
ROWS_AT_ONCE = 1024

Rows = NDArray[Any]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Who lies in whose ball."""

    held: NDArray[np.int64]
    """[n]: balls of real images that a sample lies in."""
    recalled: Flags
    """[balls of real images]: whether the real image lies in the ball of a sample."""
    recalled_without: Flags
    """[GROUPS, balls of real images]: the same without the group, whose absence makes balls of other samples larger."""
    covered: Flags
    """[balls of real images]: whether the ball holds a sample."""
    covered_without: Flags
    """[GROUPS, balls of real images]: the same without the group."""
    sampled_balls: int
    neighbours: int


def neighbourhoods(sets: FeatureSets, neighbours: int = NEIGHBOURS, balls: int = BALLS) -> Neighbourhoods:
    """Look up every sample in the real images' balls, and them in the samples', of at most `balls` images a side.

    Raises InvalidData for no more images than `neighbours` on a side, or without the reference's features.
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
    own = _OwnBalls.of(samples, chosen, neighbours, random)
    held = np.empty(len(samples), np.int64)
    recalled, grown, covered = np.zeros((3, GROUPS, len(real)), np.bool_)
    for start in range(0, len(samples), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squares = squared_distances(samples[part], real)
        inside = squares < radii
        held[part] = inside.sum(1)
        reached = squares < own.radii[part, None]
        for group, rows in _by_group(own.groups[part]):
            recalled[group] |= reached[rows].any(0)
            covered[group] |= inside[rows].any(0)
        for nearest in range(neighbours):
            reached = squares < own.radii_without[part, nearest, None]
            for group, rows in _by_group(own.missed[part, nearest]):
                grown[group] |= reached[rows].any(0)
    return Neighbourhoods(
        held,
        np.asarray(recalled.any(0)),
        _of_the_others(recalled) | grown,
        np.asarray(covered.any(0)),
        _of_the_others(covered),
        len(chosen),
        neighbours,
    )


@dataclass(frozen=True, eq=False)
class _OwnBalls:
    """The samples' own balls, with all samples and without each group of them."""

    groups: NDArray[np.int64]
    """[n]: the group of each sample that has a ball; -1 for the others."""
    radii: Rows
    """[n], squared; -inf for samples without a ball."""
    missed: NDArray[np.int64]
    """[n, k]: the group of each sample's nearest, second … neighbour; -1 for its own group, or an earlier one's."""
    radii_without: Rows
    """[n, k], squared: the radius where the group in `missed` is left out."""

    @classmethod
    def of(cls, samples: Rows, chosen: NDArray[np.int64], neighbours: int, random: np.random.Generator) -> _OwnBalls:
        n = len(samples)
        division = random.permutation(np.arange(len(chosen)) * GROUPS // len(chosen))
        groups, missed = np.full(n, -1), np.full((n, neighbours), -1)
        radii = np.full(n, -np.inf, samples.dtype)
        radii_without = np.full((n, neighbours), -np.inf, samples.dtype)
        balls = samples[chosen]
        for start in range(0, len(balls), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            squares = squared_distances(balls[part], balls)
            squares[np.arange(len(squares)), np.arange(start, start + len(squares))] = -1
            # Far enough that k of them are left without any group, but for chances that take the last of them.
            count = min(NEAREST * neighbours + 1, squares.shape[1])
            nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
            nearest = np.take_along_axis(nearest, np.take_along_axis(squares, nearest, 1).argsort(1), 1)[:, 1:]
            distances, theirs = np.take_along_axis(squares, nearest, 1), division[nearest]
            rows = chosen[part]
            radii[rows] = distances[:, neighbours - 1]
            for place in range(neighbours):
                group = theirs[:, place]
                known = (group == division[part]) | (theirs[:, :place] == group[:, None]).any(1)
                missed[rows, place] = np.where(known, -1, group)
                left = (theirs != group[:, None]).cumsum(1)
                reached = np.where(left[:, -1] >= neighbours, (left >= neighbours).argmax(1), left.shape[1] - 1)
                radii_without[rows, place] = distances[np.arange(len(rows)), reached]
        groups[chosen] = division
        return cls(groups, radii, missed, radii_without)


def _by_group(groups: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for group in set(groups.tolist()) - {-1}:
        yield group, np.flatnonzero(groups == group)


def _of_the_others(by_group: Flags) -> Flags:  # [GROUPS, m], both
    """What some other group has."""
    others: Flags = by_group.sum(0) > by_group
    return others


def squared_distances(rows: Rows, others: Rows) -> Rows:  # [a, b]
    """By |x|² + |y|² - 2 x·y; what rounding makes negative is 0."""
    squares = rows @ others.T
    squares *= -2
    squares += np.square(rows).sum(1)[:, None]
    squares += np.square(others).sum(1)
    distances: Rows = np.maximum(squares, 0, out=squares)
    return distances


def precision(sets: FeatureSets) -> Estimate:
    """Compute the share of samples that lie in some real image's ball.

    The real images and their balls are taken as given. The error is that of a share; see `share_stderr`.

    Source: T. Kynkäänniemi et al., arXiv 1904.06991, with the strict inequality of `prdc`.
    """
    found = _shared(sets)
    return Estimate.of_images(found.held > 0, **_details(found))


def density(sets: FeatureSets) -> Estimate:
    """Compute in how many real images' balls a sample lies on average, over k; above 1 where samples crowd.

    The real images and their balls are taken as given. The error is that of a mean.

    Source: M. Naeem et al., arXiv 2002.09797, equation 4.
    """
    found = _shared(sets)
    return Estimate.of_images(found.held / found.neighbours, **_details(found))


def recall(sets: FeatureSets) -> Estimate:
    """Compute the share of real images that lie in some sample's ball.

    The real images are taken as given. The error is the jackknife over GROUPS random groups of samples: a group's balls
    are left out, and the balls of the others get the radii that they have without the group. In simulations it is 1.2
    to 1.8 times the spread over samples, the more the nearer recall is to 1.

    Source: as `precision`; B. Efron, C. Stein, Annals of Statistics 9, 1981, for the jackknife.
    """
    return recall_of(_shared(sets))


def recall_of(found: Neighbourhoods) -> Estimate:
    """Compute `recall` from neighbourhoods that are known."""
    return _share_of_real(found, found.recalled, found.recalled_without)


def coverage(sets: FeatureSets) -> Estimate:
    """Compute the share of real images whose ball holds a sample.

    The real images and their balls are taken as given. The error is the jackknife over GROUPS random groups of samples,
    1.0 to 2.1 times the spread over samples in simulations.

    Source: as `density`, equation 5; the jackknife as `recall`.
    """
    found = _shared(sets)
    return _share_of_real(found, found.covered, found.covered_without)


def _share_of_real(found: Neighbourhoods, flags: Flags, without_group: Flags) -> Estimate:
    without = without_group.mean(1)
    stderr: float | None = math.sqrt((GROUPS - 1) / GROUPS * float(np.square(without - without.mean()).sum()))
    if stderr == 0:
        # No group matters: all real images are found, or none is, which does not make the share certain.
        fewer = min(len(flags), found.sampled_balls)
        stderr = share_stderr(round(float(flags.mean()) * fewer), fewer)
    return Estimate(float(flags.mean()), stderr, found.sampled_balls, None, _details(found), groups=GROUPS)


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


def _details(found: Neighbourhoods) -> dict[str, int]:
    return {"k": found.neighbours, "real_balls": len(found.covered), "sampled_balls": found.sampled_balls}


_metric = partial(
    ImageMetric, features="inception/2048", needs="features", unit="fraction", direction="higher", min_images=GROUPS
)
# Precision and density are means over the sampled images, given the real ones.
PRECISION = _metric("precision", version=2, estimate=precision, biased=False)
RECALL = _metric("recall", version=2, estimate=recall)
DENSITY = _metric("density", unit="ratio", version=1, estimate=density, biased=False)
COVERAGE = _metric("coverage", version=2, estimate=coverage)
