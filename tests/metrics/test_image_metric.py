"""Metrics of images: what every registered one promises, and what single ones compute."""

import json
import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.mmd import cmmd
from evalsvc.metrics.scores import clip_score, inception_score
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


def logits(n: int, seed: int = 0, sure: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sure, (n, 20)).astype(np.float32)


def test_is_torch_fidelitys() -> None:
    """In our order: theirs is shuffled by another generator."""
    rows = logits(1234)
    order = np.random.default_rng(0).permutation(1234)
    theirs = isc_features_to_metric(torch.tensor(rows[order]), splits=10, shuffle=False)
    found = inception_score(FeatureSets(rows))
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.details["split_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_extremes() -> None:
    """Sure and varied: as many as there are classes. The same answer for all: 1."""
    sure = 100 * np.tile(np.eye(20, dtype=np.float32), (50, 1))
    assert inception_score(FeatureSets(np.repeat(sure[:1], 1000, 0))).value == pytest.approx(1)
    assert 18 < inception_score(FeatureSets(sure)).value <= 20


def test_is_the_mean() -> None:
    found = clip_score(FeatureSets(np.array([[20.0], [30.0], [40.0]], np.float32)))
    assert (found.value, found.n) == (30.0, 3)
    assert found.stderr == pytest.approx(10 / np.sqrt(3))


def embeddings(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, 32)) + shift).astype(np.float32)


def slow(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Pair by pair, from the definition."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x.astype(float), y.astype(float)))

    def mean(a: np.ndarray, b: np.ndarray, apart: bool) -> float:
        kernels = [[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]
        return float(np.mean([k for i, row in enumerate(kernels) for j, k in enumerate(row) if not (apart and i == j)]))

    return 1000 * (mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False))


def test_is_the_definition() -> None:
    """The value is that of the authors' program, with the pairs of an image with itself."""
    x, y = embeddings(21, 0, 0.3), embeddings(17, 1)
    found = cmmd(FeatureSets(x, None, y))
    assert found.value == pytest.approx(slow(x, y, unbiased=False), rel=1e-5)
    assert found.details["unbiased"] == pytest.approx(slow(x, y, unbiased=True), rel=1e-5)


def test_length_does_not_count() -> None:
    x, y = embeddings(30, 0), embeddings(30, 1)
    assert cmmd(FeatureSets(3 * x, None, y)).value == pytest.approx(cmmd(FeatureSets(x, None, y)).value, rel=1e-4)
