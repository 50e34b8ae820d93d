import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.inception_score import inception_score


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
