"""torch-fidelity's estimators are called as its program calls them; only the errors are evalsvc's."""

from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evalsvc.errors import InvalidData
from evalsvc.metrics import mmd as own_kid
from evalsvc.metrics import reference_program
from evalsvc.metrics.fid import frechet_estimate
from evalsvc.metrics.frechet import Moments
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.prdc import neighbourhoods, recall_of
from evalsvc.metrics.shares import share_stderr
from evalsvc.metrics.torch_fidelity import TORCH_FIDELITY

METRICS = TORCH_FIDELITY.metrics


def sets_of(features: dict[str, np.ndarray], tap: int, seed: int = 7) -> FeatureSets:
    real, samples = features[f"images_{tap}"], features[f"blurred_{tap}"]
    return FeatureSets(samples, Moments.of(real), real, seed)


def tensors(sets: FeatureSets) -> list[Any]:
    return [torch.from_numpy(rows) for rows in (sets.samples, sets.reference_features)]


def test_fid(smoke_features: dict[str, np.ndarray]) -> None:
    sets = sets_of(smoke_features, 64)
    statistics = [fid_features_to_statistics(rows) for rows in tensors(sets)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found, own = METRICS["fid64"].estimate(sets), frechet_estimate(sets)
    assert found.value == expected
    assert found.value == pytest.approx(own.value, rel=1e-4)
    assert found.stderr == own.stderr
    assert found.per_image is not None
    assert found.per_image.mean() == pytest.approx(expected, rel=1e-12), "comparisons are over the images' shares"
    assert found.details == {"own_value": own.value}


def test_fid_of_imported_statistics(smoke_features: dict[str, np.ndarray]) -> None:
    """Their mean is float64 where that of features is float32, and the program takes two of one type."""
    sets = sets_of(smoke_features, 64)
    imported = FeatureSets(sets.samples, sets.reference)
    assert METRICS["fid64"].estimate(imported).value == pytest.approx(METRICS["fid64"].estimate(sets).value, rel=1e-4)


def test_no_more_images_than_features_are_refused(smoke_features: dict[str, np.ndarray]) -> None:
    """The program itself gives a number for them."""
    assert [METRICS[name].min_images for name in ("fid", "fid64")] == [2049, 65]
    with pytest.raises(InvalidData, match="give more images than features"):
        METRICS["fid"].estimate(sets_of(smoke_features, 2048))


def test_kid(smoke_features: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_program, "SUBSET_SIZE", 50)
    sets = sets_of(smoke_features, 64)
    expected = kid_features_to_metric(*tensors(sets), kid_subset_size=50, rng_seed=7, verbose=False)
    found, own = METRICS["kid"].estimate(sets), own_kid.kid(sets)
    assert found.value == expected["kernel_inception_distance_mean"]
    spread = expected["kernel_inception_distance_std"]
    assert own.stderr is not None
    assert found.stderr == pytest.approx(np.hypot(own.stderr, spread / 10))
    assert found.per_image is None, "images are in the subsets as often as it happens"
    assert found.details == {"subsets": 100, "subset_size": 50, "subset_std": spread, "own_value": own.value}
    assert found.value == pytest.approx(own.value, abs=4 * spread / 10)


def test_kid_of_few_images_and_a_large_seed(smoke_features: dict[str, np.ndarray]) -> None:
    """The program refuses subsets larger than a side, and its generator seeds from 2³² on."""
    sets = sets_of(smoke_features, 64, seed=2**40 + 7)
    found = METRICS["kid"].estimate(sets)
    assert found.details["subset_size"] == 85
    assert found.value == pytest.approx(own_kid.kid(sets).value, rel=1e-3)
    with pytest.raises(InvalidData, match="KID needs 2 images on each side, not "):
        METRICS["kid"].estimate(FeatureSets(sets.samples, None, sets.samples[:1]))


def test_error_of_kid_covers_the_spread_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the choice of subsets, which are few here."""
    for module in (own_kid, reference_program):
        monkeypatch.setattr(module, "BLOCK" if module is own_kid else "SUBSET_SIZE", 20)

    def draw(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
        return np.random.default_rng(seed).gamma(0.5, scale, (n, 4)).astype(np.float32)

    real = draw(300, 1)
    found = [METRICS["kid"].estimate(FeatureSets(draw(200, 10 + seed, 1.5), None, real, seed)) for seed in range(40)]
    spread = np.std([one.value for one in found], ddof=1)
    assert 0.8 < np.sqrt(np.mean([one.stderr**2 for one in found])) / spread < 1.7


def test_precision_and_recall(smoke_features: dict[str, np.ndarray]) -> None:
    """As in the program's default mode, which holds all distances at once."""
    sets = sets_of(smoke_features, 64)
    expected = prc_features_to_metric(*tensors(sets), verbose=False)
    precision, recall = METRICS["precision"].estimate(sets), METRICS["recall"].estimate(sets)
    assert (precision.value, recall.value) == (expected["precision"], expected["recall"])
    assert 0 < precision.value < 1
    assert precision.stderr == share_stderr(round(precision.value * 85), 85)
    own = recall_of(neighbourhoods(sets, 3))
    assert (recall.stderr, recall.groups) == (own.stderr, own.groups)
    assert recall.value == pytest.approx(own.value)


def test_protocols_name_program_release_and_estimator() -> None:
    found = {name: metric.estimator for name, metric in METRICS.items()}
    assert found == {
        name: f"{name}/1 by torch-fidelity 0.4.0" for name in ("fid", "fid64", "kid", "precision", "recall")
    }
