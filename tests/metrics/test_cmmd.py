import numpy as np
import pytest

from evalsvc.metrics.cmmd import cmmd
from evalsvc.metrics.image_metric import FeatureSets


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
