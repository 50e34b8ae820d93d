import numpy as np
import pytest

from evalsvc.metrics.frechet import Moments, frechet_distance, frechet_jackknife
from evalsvc.metrics.paired_frechet import paired_frechet


def pairs(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Features and the same a little off, as those of images and their reconstructions are."""
    random = np.random.default_rng(seed)
    originals = random.normal(size=(n, 4)) * [1, 2, 3, 4]
    return originals, 0.9 * originals + 0.3 * random.normal(size=(n, 4)) + 0.2


def groups(first: np.ndarray, second: np.ndarray, count: int) -> list[tuple[Moments, Moments]]:
    return [(Moments.of(first[start::count]), Moments.of(second[start::count])) for start in range(count)]


def test_the_value_is_that_of_all_together() -> None:
    first, second = pairs(0)
    value, _ = paired_frechet(groups(first, second, 20))
    means = [side.mean(0) for side in (first, second)]
    covariances = [np.cov(side, rowvar=False) for side in (first, second)]
    assert value == pytest.approx(frechet_distance(means[0], covariances[0], means[1], covariances[1]), rel=1e-10)


def test_the_error_is_the_spread_over_samples() -> None:
    """With one side taken as given, the error would be several times too large."""
    found = [paired_frechet(groups(*pairs(seed), 20)) for seed in range(200)]
    spread = np.std([value for value, _ in found], ddof=1)
    errors = np.array([error for _, error in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.15)
    first, second = pairs(0)
    taken = frechet_jackknife([group for _, group in groups(first, second, 20)], Moments.of(first))[1]
    assert taken is not None
    assert taken > 2 * spread


@pytest.mark.parametrize("count", [1, 2])
def test_too_little_for_an_error_has_none(count: int) -> None:
    first, second = pairs(0, 2)
    value, error = paired_frechet(groups(first, second, count))
    assert value > 0
    assert error is None
