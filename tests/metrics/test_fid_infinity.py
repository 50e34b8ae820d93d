import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from evalsvc.errors import InvalidData
from evalsvc.metrics.fid import FID64_INFINITY, FID_INFINITY, GROUPS, fid_infinity, frechet_estimate, smallest
from evalsvc.metrics.frechet import Moments, frechet_distance
from evalsvc.metrics.image_metric import FeatureSets

DIMENSIONS = 8


@pytest.fixture
def reference() -> Moments:
    return Moments.of(np.random.default_rng(0).gamma(0.5, 1, (20_000, DIMENSIONS)))


def draw(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 1.1, (n, DIMENSIONS)).astype(np.float32)


def slow_distance(rows: np.ndarray, reference: Moments) -> float:
    rows = rows.astype(np.float64)
    return frechet_distance(rows.mean(0), np.cov(rows, rowvar=False), reference.mean, reference.covariance)


def test_is_the_parabola_through_three_sizes(reference: Moments) -> None:
    """The intercept against one over the number of images, of all images and those without one and two groups."""
    samples, order = draw(1, 240), np.random.default_rng(7).permutation(240)
    groups = np.array_split(order, GROUPS)
    sizes, distances = [], []
    for count in range(3):
        kept = [np.concatenate(some) for some in combinations(groups, GROUPS - count)]
        sizes.append(len(kept[0]))
        distances.append(np.mean([slow_distance(samples[chosen], reference) for chosen in kept]))
    intercept = np.polyfit(1 / np.array(sizes), distances, 2)[-1]
    found = fid_infinity(FeatureSets(samples, reference, seed=7))
    assert found.details["sizes"] == sizes
    assert found.value == pytest.approx(intercept, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_its_interval_holds_the_true_distance(scale: float) -> None:
    """Of normal features, at zero and above, where the distance of so many images itself is far off."""
    reference = SimpleNamespace(mean=np.zeros(32), covariance=np.eye(32))
    truth, n = 32 * (scale - 1) ** 2, smallest(32)
    random = np.random.default_rng(0)
    plain, found = [], []
    for _ in range(60):
        sets = FeatureSets(random.normal(0, scale, (n, 32)), reference)
        plain.append(frechet_estimate(sets))
        found.append(fid_infinity(sets))
    spread = np.std([one.value for one in found], ddof=1)
    assert abs(np.mean([one.value for one in found]) - truth) < 0.6 * spread
    assert np.mean([one.value for one in plain]) - truth > 5 * spread
    assert 0.8 < np.sqrt(np.mean([np.square(one.stderr) for one in found])) / spread < 1.3
    covered = np.mean([abs(one.value - truth) < 1.96 * one.stderr for one in found])
    assert covered > 0.87, "95 %, less three Monte-Carlo errors"


def test_the_remainder_is_an_error() -> None:
    """Of images that are too few the extrapolation is off, and says so."""
    reference = SimpleNamespace(mean=np.zeros(32), covariance=np.eye(32))
    found = fid_infinity(FeatureSets(np.random.default_rng(0).normal(size=(60, 32)), reference))
    assert found.details["remainder"] > found.details["sampling_stderr"]
    assert found.stderr == pytest.approx(math.hypot(found.details["remainder"], found.details["sampling_stderr"]))


def test_below_zero_the_interval_reaches_zero() -> None:
    """No distance is below zero. Of equal images on both sides the extrapolation is, by far more than its error."""
    samples = np.random.default_rng(0).normal(size=(200, DIMENSIONS))
    found = fid_infinity(FeatureSets(samples, Moments.of(samples)))
    assert found.value < 0
    assert found.stderr is not None
    assert found.value + 1.96 * found.stderr > 0


def test_every_set_bears_a_distance(reference: Moments) -> None:
    assert FID64_INFINITY.min_images == 4 * 65
    assert FID_INFINITY.min_images == 29_659
    with pytest.raises(InvalidData, match="8 images are too few"):
        fid_infinity(FeatureSets(draw(1, 8), reference))
