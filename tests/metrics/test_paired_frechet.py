import math

import numpy as np
import pytest

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import Linearised, Moments, frechet_distance, without_surplus
from evalsvc.metrics.reconstruction import paired_frechet_shares

SCALES = np.array([1, 2, 3, 4])


def pairs(seed: int, n: int = 200, moved: float = 0.2, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features and the same a little off, as those of images and their reconstructions are."""
    random = np.random.default_rng(seed)
    originals = random.normal(size=(n, 4)) * SCALES
    return originals, (1 - moved / 2) * originals + noise * random.normal(size=(n, 4)) + moved


def stderr_of(found: Linearised) -> float:
    shares = without_surplus(found.shares, found.surplus)
    return float(shares.std(ddof=1)) / math.sqrt(len(shares))


def distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def delete_one(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n - 1) (θ - θ_(i)), centred, from as many distances as there are pairs."""
    one, other, n = Moments.of(first), Moments.of(second), len(first)
    without = [distance(one - Moments.of(first[[i]]), other - Moments.of(second[[i]])) for i in range(n)]
    return np.asarray((n - 1) * (np.mean(without) - np.array(without)))


def test_the_value_is_that_of_all_together() -> None:
    first, second = pairs(0)
    found = paired_frechet_shares(first, second)
    means = [side.mean(0) for side in (first, second)]
    covariances = [np.cov(side, rowvar=False) for side in (first, second)]
    expected = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.shares.mean() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("moved", "noise"), [(0.2, 0.3), (0.0, 0.3), (0.0, 3.0), (1.0, 0.3)])
def test_shares_are_what_deleting_each_pair_does(moved: float, noise: float) -> None:
    """Near zero, where first derivatives vanish on both sides, and away from zero."""
    first, second = pairs(1, 300, moved, noise)
    found, slow = paired_frechet_shares(first, second), delete_one(first, second)
    assert np.abs(found.shares - found.value - slow).max() < 0.1 * np.abs(slow).max()
    assert found.shares.std() == pytest.approx(slow.std(), rel=0.02)


def test_features_that_never_vary_change_nothing() -> None:
    """Neither what both sides lack, nor what one side alone lacks: shares stay those of the jackknife."""
    first, second = pairs(2, 200)
    first[:, 0], second[:, 1] = 0.3, -0.2
    both = np.full((200, 1), 0.7)
    found = paired_frechet_shares(np.hstack([first, both]), np.hstack([second, both]))
    slow = delete_one(first, second)
    assert found.value == pytest.approx(distance(Moments.of(first), Moments.of(second)), rel=1e-9)
    assert np.abs(found.shares - found.value - slow).max() < 0.02 * np.abs(slow).max()


@pytest.mark.parametrize(("moved", "noise"), [(0.2, 0.3), (0.0, 3.0)])
def test_the_error_is_the_spread_over_samples(moved: float, noise: float) -> None:
    """Away from zero, and where all of the distance is what n images make of none, where a jackknife is too large."""
    drawn = [pairs(seed, 200, moved, noise) for seed in range(200)]
    if moved == 0:
        drawn = [(first, second / np.sqrt(1 + noise**2 / SCALES**2)) for first, second in drawn]
    found = [paired_frechet_shares(*sides) for sides in drawn]
    spread = np.std([one.value for one in found], ddof=1)
    assert np.sqrt(np.mean([stderr_of(one) ** 2 for one in found])) == pytest.approx(spread, rel=0.17)


def test_too_few_pairs_are_refused() -> None:
    first, second = pairs(0, 4)
    with pytest.raises(InvalidData, match="4 images are too few for a distance on 4 features; give more"):
        paired_frechet_shares(first, second)
    with pytest.raises(InvalidData, match=r"one shape on both sides, not \[9, 4\] and \[8, 4\]"):
        paired_frechet_shares(*(pairs(0, n)[0] for n in (9, 8)))
