"""What every metric of images promises, over all that are registered."""

import json
import math

import numpy as np
import pytest

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.shares import share_stderr
from evalsvc.spec import catalog

DIMENSIONS = 12


@pytest.fixture(params=catalog.names("metrics"))
def metric(request: pytest.FixtureRequest) -> ImageMetric:
    found = catalog.load("metrics", request.param)
    assert isinstance(found, ImageMetric)
    assert found.name == request.param
    return found


def feature_sets(n: int, name: str = "", seed: int = 0) -> FeatureSets:
    random = np.random.default_rng(seed)
    if name == "clip_score":
        return FeatureSets(random.uniform(0, 40, (n, 1)).astype(np.float32))
    samples = random.gamma(0.5, 1.1, (n, DIMENSIONS)).astype(np.float32)
    real = np.random.default_rng(99).gamma(0.5, 1, (300, DIMENSIONS)).astype(np.float32)
    return FeatureSets(samples, Moments.of(real), real)


def test_shares_are_the_value_and_its_error(metric: ImageMetric) -> None:
    """A paired difference of two checkpoints rests on it."""
    found = metric.estimate(feature_sets(150, metric.name))
    assert math.isfinite(found.value)
    assert found.stderr is not None
    assert 0 < found.stderr < max(1, abs(found.value))
    if found.per_image is not None:
        assert found.per_image.shape == (150,)
        assert found.per_image.mean() == pytest.approx(found.value, rel=1e-9)
        sampling = found.per_image.std(ddof=1) / math.sqrt(150)
        assert sampling == pytest.approx(found.details.get("sampling_stderr", found.stderr), rel=1e-9)
        assert sampling <= found.stderr * (1 + 1e-9)


def test_the_error_is_the_spread_over_samples(metric: ImageMetric) -> None:
    """The jackknife over groups is rather too large, by most where nearly all real images are found."""
    found = [metric.estimate(feature_sets(150, metric.name, seed)) for seed in range(80)]
    errors = [one.stderr or 0.0 for one in found]
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std([one.value for one in found], ddof=1)
    assert 0.8 < ratio < (1.15 if found[0].groups is None else 1.6)


def test_is_the_same_every_time(metric: ImageMetric) -> None:
    one, other = (metric.estimate(feature_sets(150, metric.name)) for _ in range(2))
    assert (one.value, one.stderr) == (other.value, other.stderr)
    assert json.dumps(one.details) == json.dumps(other.details)


def test_says_what_it_reads(metric: ImageMetric) -> None:
    assert metric.features.partition("/")[0] in {"inception", "clip", "clip_score", "dinov2"}
    assert metric.estimator == f"{metric.name}/{metric.version}"
    if metric.needs != "nothing":
        with pytest.raises(InvalidData, match="give"):
            metric.estimate(FeatureSets(feature_sets(150).samples))


def test_sizes_that_differ() -> None:
    sets = feature_sets(50)
    wrong = FeatureSets(sets.samples, None, np.ones((9, 3), np.float32))
    with pytest.raises(InvalidData, match="12 and of 3 dimensions"):
        catalog.load("metrics", "kid").estimate(wrong)


def test_equal_answers_are_not_certain() -> None:
    """Other equal numbers are, and one image has no error."""
    errors = [Estimate.of_images(numbers).stderr for numbers in ([3.0], [3.0] * 20, [0] * 20, [1] * 20)]
    assert errors == [None, 0.0, share_stderr(0, 20), share_stderr(20, 20)]
