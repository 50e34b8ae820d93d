import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance
from torch_fidelity.metric_kid import kid_features_to_metric

from evalsvc.metrics import mmd as module
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.mmd import kid


def draw(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, scale, (n, 16)).astype(np.float32)


def test_equals_the_definition() -> None:
    """The unbiased estimate, pair by pair, with unequal numbers."""
    x, y = draw(12, 0), draw(9, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b / 16 + 1) ** 3)

    expected = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kid(FeatureSets(x, None, y)).value == pytest.approx(expected, rel=1e-9)


def test_is_torch_fidelitys_and_clean_fids_on_real_features(smoke_features: dict[str, np.ndarray]) -> None:
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
    monkeypatch.setattr(module, "BLOCK", 50)
    blocked = kid(sets)
    assert blocked.details["blocks"] == 14
    assert whole.stderr is not None
    assert abs(blocked.value - whole.value) < whole.stderr
    null = [kid(FeatureSets(draw(100, seed), None, draw(130, 1000 + seed))).value for seed in range(60)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(60)


def test_at_zero_the_error_is_the_spread_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variance of pairs counted twice would make it √2 times too large there."""
    monkeypatch.setattr(module, "BLOCK", 100)
    real = draw(400, 1)
    found = [kid(FeatureSets(draw(200, 10 + seed), None, real)) for seed in range(150)]
    spread = np.std([one.value for one in found], ddof=1)
    assert np.sqrt(np.mean([one.stderr**2 for one in found])) == pytest.approx(spread, rel=0.17)


def test_does_not_depend_on_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions often lie by classes; blocks of neighbours, of one class each, would make two equal sets far apart."""
    monkeypatch.setattr(module, "BLOCK", 100)
    classes = np.random.default_rng(0).gamma(0.5, 1, (30, 16))
    values = []
    for seed in range(20):
        real, samples = (np.repeat(classes, 20, 0) + draw(600, place + 2 * seed) for place in (1000, 1001))
        sets = FeatureSets(samples.astype(np.float32), None, real.astype(np.float32), seed=seed)
        values.append(kid(sets).value)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(20)


def test_shares_are_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints are subtracted image by image: the share of an odd image is where the image is."""
    monkeypatch.setattr(module, "BLOCK", 50)
    samples, real = draw(200, 0), draw(300, 1)
    before = kid(FeatureSets(samples, None, real)).per_image
    samples[37] *= 10
    after = kid(FeatureSets(samples, None, real)).per_image
    assert before is not None
    assert after is not None
    assert np.abs(after - before).argmax() == 37


def test_error_is_the_spread_far_from_zero_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the samples of a block have in common is not theirs; counted so, the error would be far too large."""
    monkeypatch.setattr(module, "BLOCK", 100)
    real = draw(600, 1) + 3
    found = [kid(FeatureSets(draw(600, 10 + seed, 1.2) + 3, None, real)) for seed in range(60)]
    spread = np.std([one.value for one in found], ddof=1)
    assert np.sqrt(np.mean([one.stderr**2 for one in found])) == pytest.approx(spread, rel=0.3)


def test_block_error_is_the_spread_over_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many blocks on each side, and real images drawn anew."""
    monkeypatch.setattr(module, "BLOCK", 50)
    found = [kid(FeatureSets(draw(600, 10 + seed, 1.2), None, draw(600, 500 + seed))) for seed in range(60)]
    spread = np.std([one.value for one in found], ddof=1)
    assert np.sqrt(np.mean([one.details["block_stderr"] ** 2 for one in found])) == pytest.approx(spread, rel=0.3)


def test_every_real_image_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples than real images, and more: the shorter list of blocks is repeated."""
    monkeypatch.setattr(module, "BLOCK", 20)
    for n, m in ((20, 95), (95, 20)):
        real = draw(m, 1)
        value = kid(FeatureSets(draw(n, 0), None, real)).value
        for row in range(m):
            moved = real.copy()
            moved[row] *= 3
            assert kid(FeatureSets(draw(n, 0), None, moved)).value != value
