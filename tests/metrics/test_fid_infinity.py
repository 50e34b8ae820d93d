import numpy as np
import pytest

from evalsvc.errors import InvalidData
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.fid_infinity import FID64_INFINITY, FID_INFINITY, PARTITIONS, fid_infinity
from evalsvc.metrics.frechet import Moments, frechet_distance
from evalsvc.metrics.image_metric import Estimate, FeatureSets

DIMENSIONS = 8


@pytest.fixture
def reference() -> Moments:
    return Moments.of(np.random.default_rng(0).gamma(0.5, 1, (20_000, DIMENSIONS)))


def draw(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 1.1, (n, DIMENSIONS)).astype(np.float32)


def test_equals_a_slow_fit(reference: Moments) -> None:
    samples, order = draw(1, 203), np.random.default_rng(7).permutation(203)
    rows, targets = [], []
    for parts in PARTITIONS:
        distances = []
        for chosen in np.array_split(order, parts):
            part = samples[chosen].astype(np.float64)
            moments = part.mean(0), np.cov(part, rowvar=False)
            distances.append(frechet_distance(*moments, reference.mean, reference.covariance))
        rows.append([1, parts / 203])
        targets.append(np.mean(distances))
    intercept, slope = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    found = fid_infinity(FeatureSets(samples, reference, seed=7))
    assert found.value == pytest.approx(intercept, rel=1e-9)
    assert found.details["slope"] == pytest.approx(slope, rel=1e-9)


def test_is_free_of_most_of_the_bias_and_knows_its_error(reference: Moments) -> None:
    """The distance of a million samples is what both estimate from 200."""
    many = Moments.of(draw(999, 1_000_000))
    truth = frechet_distance(many.mean, many.covariance, reference.mean, reference.covariance)
    sets = [FeatureSets(draw(seed, 200), reference, seed=seed) for seed in range(100)]
    plain, fitted = ([estimate(one) for one in sets] for estimate in (frechet_estimate, fid_infinity))
    bias = np.mean([one.value for one in plain]) - truth
    assert abs(np.mean([one.value for one in fitted]) - truth) < bias / 3
    assert 0.6 < error_over_spread(fitted) < 1.5


def error_over_spread(found: list[Estimate]) -> float:
    spread = np.std([one.value for one in found], ddof=1)
    return float(np.sqrt(np.mean([np.square(one.stderr) for one in found])) / spread)


def test_every_part_bears_a_distance(reference: Moments) -> None:
    assert FID64_INFINITY.min_images == 4 * 65
    assert FID_INFINITY.min_images == 4 * 2049
    with pytest.raises(InvalidData, match="8 images cannot bear"):
        fid_infinity(FeatureSets(draw(1, 8), reference))
