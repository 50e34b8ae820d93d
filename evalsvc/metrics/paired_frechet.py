"""The Fréchet distance between images and what was made of each of them, with an error that knows of the pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

from evalsvc.metrics.frechet import Moments, frechet_distance


def paired_frechet(groups: Sequence[tuple[Moments, Moments]]) -> tuple[float, float | None]:
    """Distance of all first to all second moments, and its standard error with the pairs as what varies.

    Group j holds the same images on both sides. With θ_(j) the distance where group j is left out on both, and θ. their
    mean over the g groups, the delete-a-group jackknife is

        stderr² = (g - 1) / g · Σ (θ_(j) - θ.)²

    for groups of (nearly) equal size. An error that takes one side as given would count the images that only the other
    side is missing, which is most of it where the two sides are alike. Source: B. Efron, C. Stein, The jackknife
    estimate of variance, Annals of Statistics 9, 1981.

    None for the error with fewer than two groups, or where leaving one out leaves fewer than 2 images.

    Raises:
        InvalidData: fewer than 2 images in all, or sizes differ.
    """
    first, second = (reduce(add, side) for side in zip(*groups, strict=True))
    value = _distance(first, second)
    if len(groups) < 2 or any(first.n - group.n < 2 for group, _ in groups):
        return value, None
    without = [_distance(first - left, second - right) for left, right in groups]
    centre = math.fsum(without) / len(without)
    squares = math.fsum((other - centre) ** 2 for other in without)
    return value, math.sqrt((len(groups) - 1) / len(groups) * squares)


def _distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
