"""Metrics of images: what every registered one promises, and scores without real images."""

import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from evalsvc.errors import InvalidData
from evalsvc.metrics import mmd, reference_program
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.frechet import Moments, counted_once
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.reconstruction import paired_frechet_shares
from evalsvc.metrics.scores import clip_score, inception_score
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY
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
    """A paired difference of two checkpoints rests on it. The same features give the same."""
    found, again = (metric.estimate(feature_sets(150, metric.name)) for _ in range(2))
    assert (found.value, found.stderr) == (again.value, again.stderr)
    assert json.dumps(found.details) == json.dumps(again.details)
    assert math.isfinite(found.value)
    assert 0 < found.stderr < max(1, abs(found.value))
    if found.per_image is not None:
        assert found.per_image.shape == (150,)
        assert found.per_image.mean() == pytest.approx(found.value, rel=1e-9)
        sampling = found.per_image.std(ddof=1) / math.sqrt(150)
        assert sampling == pytest.approx(found.details.get("sampling_stderr", found.stderr), rel=1e-9)
        assert sampling <= found.stderr * (1 + 1e-9)


def gamma(n: int, seed: int, scale: float = 1.0, dimensions: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, scale, (n, dimensions)).astype(np.float32)


def kid_far_from(seed: int, n: int, scale: float, shift: float) -> Estimate:
    return mmd.kid(FeatureSets(gamma(n, 10 + seed, scale) + shift, None, gamma(2 * n if not shift else n, 1) + shift))


def blocks_of_both_sides(seed: int) -> Estimate:
    found = mmd.kid(FeatureSets(gamma(600, 10 + seed, 1.2), None, gamma(600, 500 + seed)))
    return Estimate(found.value, found.details["block_stderr"], found.n)


def fid_of_normals(seed: int, shift: float) -> Estimate:
    reference = SimpleNamespace(mean=np.zeros(8), covariance=np.eye(8))
    return frechet_estimate(FeatureSets(np.random.default_rng(seed).normal(shift, 1, (200, 8)), reference))


def fid_of_pairs(seed: int, moved: float, noise: float) -> Estimate:
    """Features and the same a little off; with `moved` 0 both sides have one distribution."""
    random, scales = np.random.default_rng(seed), np.array([1, 2, 3, 4])
    first = random.normal(size=(200, 4)) * scales
    second = (1 - moved / 2) * first + noise * random.normal(size=(200, 4)) + moved
    if moved == 0:
        second /= np.sqrt(1 + noise**2 / scales**2)
    shares = paired_frechet_shares(first, second)
    return Estimate(shares.value, Estimate.of_images(counted_once(shares, 4)).stderr, 200)


def kid_of_torch_fidelity(seed: int) -> Estimate:
    sets = FeatureSets(gamma(200, 10 + seed, 1.5, 4), None, gamma(300, 1, 1.0, 4), seed)
    return TORCH_FIDELITY.metrics["kid"].estimate(sets)


CASES: dict[str, tuple[Callable[[int], Estimate], int, float, float]] = {
    **{
        name: (
            lambda seed, name=name: catalog.load("metrics", name).estimate(feature_sets(150, name, seed)),
            80,
            0.8,
            most,
        )
        for name in catalog.names("metrics")
        # The jackknife over groups is rather too large, by most where nearly all real images are found.
        for most in [1.6 if name in ("recall", "coverage") else 1.15]
    },
    "fid at zero": (lambda seed: fid_of_normals(seed, 0.0), 200, 0.85, 1.15),
    "fid away from zero": (lambda seed: fid_of_normals(seed, 0.3), 200, 0.85, 1.15),
    "pairs at zero": (lambda seed: fid_of_pairs(seed, 0.0, 3.0), 200, 0.83, 1.17),
    "pairs away from zero": (lambda seed: fid_of_pairs(seed, 0.2, 0.3), 200, 0.83, 1.17),
    "kid in blocks, at zero": (lambda seed: kid_far_from(seed, 200, 1.0, 0), 150, 0.83, 1.17),
    "kid in blocks, far from zero": (lambda seed: kid_far_from(seed, 600, 1.2, 3), 60, 0.7, 1.3),
    "kid's blocks on both sides": (blocks_of_both_sides, 60, 0.7, 1.3),
    "torch-fidelity's kid, of few subsets": (kid_of_torch_fidelity, 40, 0.8, 1.7),
}
"""Estimates by a seed, how many to draw, and least and most of the ratio of their error to their spread."""

BLOCKS = {"kid in blocks, at zero": 100, "kid in blocks, far from zero": 100, "kid's blocks on both sides": 50}


@pytest.mark.parametrize("case", CASES)
def test_the_error_is_the_spread_over_samples(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At zero a jackknife that counts the variance of pairs twice is √2 too large."""
    estimate, draws, least, most = CASES[case]
    monkeypatch.setattr(mmd, "BLOCK", BLOCKS.get(case, 20 if "torch" in case else mmd.BLOCK))
    monkeypatch.setattr(reference_program, "SUBSET_SIZE", 20)
    found = [estimate(seed) for seed in range(draws)]
    errors = np.sqrt(np.mean(np.square([one.stderr or 0.0 for one in found])))
    assert least < errors / np.std([one.value for one in found], ddof=1) < most


def test_says_what_it_reads(metric: ImageMetric) -> None:
    assert metric.features.partition("/")[0] in {"inception", "clip", "clip_score", "dinov2"}
    assert metric.estimator == f"{metric.name}/{metric.version}"
    if metric.needs != "nothing":
        with pytest.raises(InvalidData, match="give"):
            metric.estimate(FeatureSets(feature_sets(150).samples))


def test_sizes_that_differ() -> None:
    wrong = FeatureSets(feature_sets(50).samples, None, np.ones((9, 3), np.float32))
    with pytest.raises(InvalidData, match="12 and of 3 dimensions"):
        catalog.load("metrics", "kid").estimate(wrong)


def test_equal_answers_are_not_certain() -> None:
    """Other equal numbers are, and one image has no error."""
    errors = [Estimate.of_images(numbers).stderr for numbers in ([3.0], [3.0] * 20, [0] * 20, [1] * 20)]
    assert errors == [None, 0.0, share_stderr(0, 20), share_stderr(20, 20)]


def test_inception_score_is_torch_fidelitys() -> None:
    """In our order: theirs is shuffled by another generator."""
    rows = np.random.default_rng(0).normal(0, 2, (1234, 20)).astype(np.float32)
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


def test_clip_score_is_the_mean() -> None:
    found = clip_score(FeatureSets(np.array([[20.0], [30.0], [40.0]], np.float32)))
    assert (found.value, found.n, found.stderr) == (30.0, 3, pytest.approx(10 / np.sqrt(3)))
