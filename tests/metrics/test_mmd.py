"""Maximum mean discrepancies, KID and CMMD, against their definitions and other programs."""

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance
from torch_fidelity.metric_kid import kid_features_to_metric

from evalsvc.metrics import mmd
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.mmd import cmmd, kid, pair_variance


def draw(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, scale, (n, 16)).astype(np.float32)


def test_kid_equals_the_definition() -> None:
    """The unbiased estimate, pair by pair, with unequal numbers."""
    x, y = draw(12, 0), draw(9, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b / 16 + 1) ** 3)

    expected = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kid(FeatureSets(x, None, y)).value == pytest.approx(expected, rel=1e-9)


def test_kid_is_torch_fidelitys_and_clean_fids_on_real_features(smoke_features: dict[str, np.ndarray]) -> None:
    """One subset of all 85 images. In float64; in float32, as they are called, they are off by 3e-5 themselves."""
    images, blurred = (smoke_features[name].astype(np.float64) for name in ("images_2048", "blurred_2048"))
    found = kid(FeatureSets(blurred, None, images)).value
    theirs = kid_features_to_metric(
        torch.tensor(blurred), torch.tensor(images), kid_subsets=1, kid_subset_size=85, rng_seed=0, verbose=False,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert found == pytest.approx(kernel_distance(blurred, images, num_subsets=1, max_subset_size=85), rel=1e-9)


def test_blocks_are_unbiased_and_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal distributions the mean over draws is zero, however small the blocks."""
    sets = FeatureSets(draw(700, 0, 1.3), None, draw(900, 1))
    whole = kid(sets)
    monkeypatch.setattr(mmd, "BLOCK", 50)
    blocked = kid(sets)
    assert blocked.details["blocks"] == 14
    assert abs(blocked.value - whole.value) < whole.stderr
    null = [kid(FeatureSets(draw(100, seed), None, draw(130, 1000 + seed))).value for seed in range(60)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(60)


def test_kid_does_not_depend_on_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions often lie by classes; blocks of neighbours, of one class each, would make two equal sets far apart."""
    monkeypatch.setattr(mmd, "BLOCK", 100)
    classes = np.random.default_rng(0).gamma(0.5, 1, (30, 16))
    values = []
    for seed in range(20):
        real, samples = (np.repeat(classes, 20, 0) + draw(600, place + 2 * seed) for place in (1000, 1001))
        sets = FeatureSets(samples.astype(np.float32), None, real.astype(np.float32), seed=seed)
        values.append(kid(sets).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(20)


def test_shares_are_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints are subtracted image by image: the share of an odd image is where the image is."""
    monkeypatch.setattr(mmd, "BLOCK", 50)
    samples, real = draw(200, 0), draw(300, 1)
    before = kid(FeatureSets(samples, None, real)).per_image
    samples[37] *= 10
    assert np.abs(kid(FeatureSets(samples, None, real)).per_image - before).argmax() == 37


def test_every_real_image_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples than real images, and more: the shorter list of blocks is repeated."""
    monkeypatch.setattr(mmd, "BLOCK", 20)
    for n, m in ((20, 95), (95, 20)):
        real = draw(m, 1)
        value = kid(FeatureSets(draw(n, 0), None, real)).value
        for row in range(m):
            moved = real.copy()
            moved[row] *= 3
            assert kid(FeatureSets(draw(n, 0), None, moved)).value != value


def test_pair_variance_equals_centring_entry_by_entry() -> None:
    """The U-centred matrix, as printed."""
    random, n = np.random.default_rng(0), 11
    gram = random.normal(size=(n, n))
    gram += gram.T + np.add.outer(*[random.normal(size=n)] * 2)
    np.fill_diagonal(gram, 0)
    rows = gram.sum(1)
    centred = gram - np.add.outer(rows, rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    total = np.square(centred)[~np.eye(n, dtype=bool)].sum()
    assert pair_variance(rows, np.square(gram).sum()) == pytest.approx(total / (n * (n - 3)), rel=1e-12)
    assert pair_variance(np.zeros(3), 1.0) == 0


def embeddings(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, 32)) + shift).astype(np.float32)


def slow_cmmd(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Pair by pair, from the definition."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x.astype(float), y.astype(float)))

    def mean(a: np.ndarray, b: np.ndarray, apart: bool) -> float:
        kernels = [[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]
        return float(np.mean([k for i, row in enumerate(kernels) for j, k in enumerate(row) if not (apart and i == j)]))

    return 1000 * (mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False))


def test_cmmd_is_the_definition() -> None:
    """The value is that of the authors' program, with the pairs of an image with itself. Lengths do not count."""
    x, y = embeddings(21, 0, 0.3), embeddings(17, 1)
    found = cmmd(FeatureSets(x, None, y))
    assert found.value == pytest.approx(slow_cmmd(x, y, unbiased=False), rel=1e-5)
    assert found.details["unbiased"] == pytest.approx(slow_cmmd(x, y, unbiased=True), rel=1e-5)
    assert cmmd(FeatureSets(3 * x, None, y)).value == pytest.approx(found.value, rel=1e-4)
