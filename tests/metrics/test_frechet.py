"""Fréchet distances: their value, the shares of images, the error of few images, and FID∞."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import combinations
from operator import add
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.fid import FID64, GROUPS, fid_infinity, frechet_estimate, smallest
from evalsvc.metrics.frechet import (
    LEAST,
    Linearised,
    Moments,
    frechet_distance,
    frechet_shares,
    without_surplus,
)
from evalsvc.metrics.image_metric import Estimate, FeatureSets


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


class TestMoments:
    def test_merged_shards_equal_one_pass(self, generator: np.random.Generator) -> None:
        features = generator.gamma(0.3, 1, (1000, 64)).astype(np.float32)  # as skewed as Inception's
        parts = np.split(features, [100, 101, 640])
        whole, merged = Moments.of(features), reduce(add, [Moments.of(parts[index]) for index in (3, 1, 0, 2)])
        assert merged.n == whole.n == 1000
        np.testing.assert_allclose(merged.mean, features.mean(0, dtype=float), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(features, rowvar=False), rtol=1e-11, atol=1e-14)
        other = Moments.of(generator.gamma(0.4, 1, (800, 64)))
        assert distance(merged, other) == pytest.approx(distance(whole, other), rel=1e-12)

    def test_a_group_is_taken_out(self, generator: np.random.Generator) -> None:
        features = generator.normal(size=(30, 5))
        rest = Moments.of(features) - Moments.of(features[:12])
        np.testing.assert_allclose(rest.covariance, np.cov(features[12:], rowvar=False), rtol=1e-10)

    def test_float32_features_are_summed_in_float64(self) -> None:
        features = np.full((20_000, 2), 0.1, np.float32)
        assert Moments.of(features).mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)

    @pytest.mark.parametrize(
        ("compute", "message"),
        [
            (
                lambda: Moments.of(np.ones((1, 3))).covariance,
                "of 1 feature rows is not defined; give at least 2",
            ),
            (lambda: Moments.of(np.ones((0, 3))).mean, "no mean"),
            (lambda: Moments.of(np.ones(3)), r"shape \[3\]"),
            (lambda: Moments.of(np.ones((2, 3))) + Moments.of(np.ones((2, 4))), "3 and of 4 dimensions"),
            (
                lambda: Moments.of(np.ones((2, 3))) - Moments.of(np.ones((3, 3))),
                "group of 3 cannot be removed from 2",
            ),
            (
                lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)),
                "2 and of 3 dimensions",
            ),
            (lambda: frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), r"\[2\] and \[3, 3\]"),
        ],
    )
    def test_what_does_not_fit(self, compute: Callable[[], object], message: str) -> None:
        with pytest.raises(InvalidData, match=message):
            compute()

    def test_nan_names_its_row(self) -> None:
        with pytest.raises(NonFinite, match="1 of 4 feature rows hold NaN or infinity, first row 2"):
            Moments.of([[0, 0], [0, 0], [0, np.nan], [0, 0]])
        with pytest.raises(NonFinite):
            frechet_distance([np.nan], np.eye(1), np.zeros(1), np.eye(1))


class TestDistance:
    def test_diagonal_normals(self, generator: np.random.Generator) -> None:
        """Σ (μ₁ - μ₂)² + Σ (σ₁ - σ₂)², the closed form for independent coordinates."""
        mean1, mean2, sigma1, sigma2 = generator.uniform(0.1, 3, (4, 9))
        expected = ((mean1 - mean2) ** 2).sum() + ((sigma1 - sigma2) ** 2).sum()
        found = frechet_distance(mean1, np.diag(sigma1**2), mean2, np.diag(sigma2**2))
        assert found == pytest.approx(expected, rel=1e-12)

    def test_full_rank_equals_scipys_root(self, generator: np.random.Generator) -> None:
        """The formula of clean-fid and pytorch-fid, on covariances as unlike as 1 to 1e8 in their directions."""
        spread = np.geomspace(1, 1e-4, 48)
        first, second = (Moments.of(generator.gamma(0.3, 1, (400, 48)) * spread) for _ in range(2))
        gap = first.mean - second.mean
        roots = np.trace(sqrtm(first.covariance @ second.covariance)).real
        expected = gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * roots
        assert distance(first, second) == pytest.approx(expected, rel=1e-9)

    def test_a_feature_that_never_varies(self, generator: np.random.Generator) -> None:
        """Neither side has full rank then, whatever the number of images, and rounding must not be taken for it."""
        first, second = generator.normal(size=(2, 300, 20))
        first[:, -1] = second[:, -1] = 0.3
        cut = distance(Moments.of(first[:, :-1]), Moments.of(second[:, :-1]))
        assert distance(Moments.of(first), Moments.of(second)) == pytest.approx(cut, rel=1e-12)

    @pytest.mark.parametrize("rows", [(40, 25), (2, 40), (40, 600)])
    def test_fewer_images_than_features(self, generator: np.random.Generator, rows: tuple[int, int]) -> None:
        """tr (Σ₁Σ₂)^½ is the nuclear norm of X₁ X₂ᵀ of the centred features, which never makes a d x d matrix."""
        features = [generator.gamma(0.3, 1 + index, (n, 256)) for index, n in enumerate(rows)]
        scaled = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in features]
        cross = np.linalg.svd(scaled[0] @ scaled[1].T, compute_uv=False).sum()
        gap = features[0].mean(0) - features[1].mean(0)
        expected = gap @ gap + sum((x**2).sum() for x in scaled) - 2 * cross
        assert distance(*map(Moments.of, features)) == pytest.approx(expected, rel=1e-9)

    def test_is_symmetric_and_zero_of_itself(self, generator: np.random.Generator) -> None:
        first, second = (Moments.of(generator.normal(size=(50, 80))) for _ in range(2))
        assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-10)
        assert 0 <= distance(first, first) < 1e-10
        zeros = np.zeros((3, 3))
        assert frechet_distance([1, 0, 0], zeros, [0, 2, 0], zeros) == pytest.approx(5), "of constant images the means"


def delete_one(features: np.ndarray, reference: Moments) -> np.ndarray:
    """(n - 1) (θ - θ_(i)), from as many distances as there are rows."""
    total = Moments.of(features)
    without = [distance(total - Moments.of(features[i : i + 1]), reference) for i in range(len(features))]
    return np.asarray((len(features) - 1) * (distance(total, reference) - np.array(without)))


def calibrated(found: Linearised) -> np.ndarray:
    return without_surplus(found.shares, found.surplus)


class TestShares:
    @pytest.mark.parametrize(("n", "shift", "tolerance"), [(400, 0.5, 0.02), (400, 0.0, 0.03), (20, 0.0, 0.3)])
    def test_are_what_deleting_each_row_does(
        self, generator: np.random.Generator, n: int, shift: float, tolerance: float
    ) -> None:
        """Also next to zero, where the gradient vanishes. What is left is of third order, and falls with n²."""
        reference = Moments.of(generator.gamma(0.5, 1, (2000, 8)))
        features = generator.gamma(0.5, 1, (n, 8)) + shift
        found = frechet_shares(features, reference)
        value, shares = found.value, found.shares
        slow = delete_one(features, reference)
        assert value == pytest.approx(distance(Moments.of(features), reference), rel=1e-12)
        assert shares.mean() == pytest.approx(value, rel=1e-12)
        assert np.abs(shares - value - (slow - slow.mean())).max() < tolerance * np.abs(slow - slow.mean()).max()
        assert shares.std() == pytest.approx(slow.std(), rel=tolerance)

    def test_surplus_is_the_variance_of_pairs(self, generator: np.random.Generator) -> None:
        """Of normal features with the identity as covariance σ₂² = d + d (d + 1)/8, in closed form."""
        d, n = 6, 4000
        found = frechet_shares(generator.normal(size=(n, d)), SimpleNamespace(mean=np.zeros(d), covariance=np.eye(d)))
        assert found.surplus == pytest.approx(2 * (d + d * (d + 1) / 8) / n**2, rel=0.15)

    @pytest.mark.parametrize(("shifts", "noise"), [((0.0, 0.15), 0.3), ((0.1, 0.1), 0.8)])
    def test_pairs_next_to_zero_raise_no_false_alarms(
        self, generator: np.random.Generator, shifts: tuple[float, float], noise: float
    ) -> None:
        """One factor for all shares of a set leaves the difference of coupled sets honest, whatever the factors."""
        reference = SimpleNamespace(mean=np.zeros(6), covariance=np.eye(6))
        differences, errors = [], []
        for _ in range(200):
            common = np.sqrt(1 - noise**2) * generator.normal(size=(150, 6))
            sides = [
                calibrated(frechet_shares(common + noise * generator.normal(size=(150, 6)) + shift, reference))
                for shift in shifts
            ]
            differences.append(float((sides[1] - sides[0]).mean()))
            errors.append(float((sides[1] - sides[0]).std(ddof=1)) / np.sqrt(150))
        found = np.abs(np.array(differences) - np.mean(differences)) > 1.96 * np.array(errors)
        assert found.mean() < 0.11, "1.5 times the nominal 5 %, and two Monte-Carlo errors"

    def test_a_reference_without_full_rank(self, generator: np.random.Generator) -> None:
        reference, features = Moments.of(generator.normal(size=(9, 12))), generator.normal(size=(200, 12))
        found = frechet_shares(features, reference)
        assert found.value == pytest.approx(distance(Moments.of(features), reference), rel=1e-9)
        assert found.shares.std() == pytest.approx(delete_one(features, reference).std(), rel=0.01)


def test_shares_lose_the_surplus_and_keep_their_mean() -> None:
    shares = np.random.default_rng(0).normal(3, 2, 500)
    variance = shares.var(ddof=1) / 500
    for surplus in (0.0, 0.3 * variance, 0.9 * variance):
        found = without_surplus(shares, surplus)
        assert found.mean() == pytest.approx(shares.mean(), rel=1e-12)
        assert found.var(ddof=1) / 500 == pytest.approx(max(variance - surplus, LEAST * variance), rel=1e-9)
    for n in (1, 3):
        assert (without_surplus(np.ones(n), 1.0) == 1).all()


@pytest.mark.usefixtures("many_cases")
def test_all_features_of_few_images_are_theirs(smoke_features: dict[str, np.ndarray]) -> None:
    """85 images on 2,048 features: the null space of the product adds 2e-6 to what the libraries compute."""
    images, blurred = smoke_features["images_2048"], smoke_features["blurred_2048"]
    first, second = Moments.of(blurred), Moments.of(images)
    found = frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert found == pytest.approx(float(smoke_features["torch_fidelity_2048"]), rel=1e-5)
    assert found == pytest.approx(float(smoke_features["clean_fid_2048"]), rel=1e-5)


@pytest.mark.parametrize(("n", "once"), [(100, False), (255, False), (256, True)])
def test_pairs_are_counted_once_from_four_images_per_feature_on(n: int, once: bool) -> None:
    """With fewer the correction takes off too much: unchanged checkpoints are told apart twice as often as stated."""
    random = np.random.default_rng(1)
    features = random.standard_normal((n, 64)).astype(np.float32)
    reference = Moments.of(random.standard_normal((5_000, 64)))
    found, shares = FID64.estimate(FeatureSets(features, reference)), frechet_shares(features, reference).shares
    assert found.value == pytest.approx(float(shares.mean()))
    assert (float(found.per_image.std()) < 0.9 * float(shares.std())) == once


DIMENSIONS = 8


@pytest.fixture
def reference() -> Moments:
    return Moments.of(np.random.default_rng(0).gamma(0.5, 1, (20_000, DIMENSIONS)))


def draw(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 1.1, (n, DIMENSIONS)).astype(np.float32)


def test_is_the_parabola_through_three_sizes(reference: Moments) -> None:
    """The intercept against one over the number of images, of all images and those without one and two groups."""
    samples, order = draw(1, 240), np.random.default_rng(7).permutation(240)
    groups = np.array_split(order, GROUPS)
    sizes, distances = [], []
    for count in range(3):
        kept = [np.concatenate(some) for some in combinations(groups, GROUPS - count)]
        sizes.append(len(kept[0]))
        distances.append(np.mean([distance(Moments.of(samples[chosen]), reference) for chosen in kept]))
    intercept = np.polyfit(1 / np.array(sizes), distances, 2)[-1]
    found = fid_infinity(FeatureSets(samples, reference, seed=7))
    assert found.details["sizes"] == sizes
    assert found.value == pytest.approx(intercept, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_its_interval_holds_the_true_distance(scale: float) -> None:
    """Of normal features, at zero and above, where the distance of so many images itself is far off."""
    reference = SimpleNamespace(mean=np.zeros(32), covariance=np.eye(32))
    truth, n = 32 * (scale - 1) ** 2, smallest(32)
    random = np.random.default_rng(0)
    plain, found = [], []
    for _ in range(60):
        sets = FeatureSets(random.normal(0, scale, (n, 32)), reference)
        plain.append(frechet_estimate(sets))
        found.append(fid_infinity(sets))
    spread = np.std([one.value for one in found], ddof=1)
    assert abs(np.mean([one.value for one in found]) - truth) < 0.6 * spread
    assert np.mean([one.value for one in plain]) - truth > 5 * spread
    assert 0.8 < np.sqrt(np.mean([np.square(one.stderr) for one in found])) / spread < 1.3
    covered = np.mean([abs(one.value - truth) < 1.96 * one.stderr for one in found])
    assert covered > 0.87, "95 %, less three Monte-Carlo errors"


def test_the_remainder_is_an_error() -> None:
    """Of images that are too few the extrapolation is off, and says so."""
    reference = SimpleNamespace(mean=np.zeros(32), covariance=np.eye(32))
    found = fid_infinity(FeatureSets(np.random.default_rng(0).normal(size=(60, 32)), reference))
    assert found.details["remainder"] > found.details["sampling_stderr"]
    assert found.stderr == pytest.approx(math.hypot(found.details["remainder"], found.details["sampling_stderr"]))


def test_below_zero_the_interval_reaches_zero() -> None:
    """No distance is below zero. Of equal images on both sides the extrapolation is, by far more than its error."""
    samples = np.random.default_rng(0).normal(size=(200, DIMENSIONS))
    found = fid_infinity(FeatureSets(samples, Moments.of(samples)))
    assert found.value < 0
    assert found.value + 1.96 * found.stderr > 0


@pytest.mark.parametrize("estimate", [frechet_estimate, fid_infinity])
def test_no_more_images_than_features_are_refused(
    estimate: Callable[[FeatureSets], Estimate], reference: Moments
) -> None:
    with pytest.raises(InvalidData, match="8 images are too few for a distance on 8 features; give more"):
        estimate(FeatureSets(draw(1, 8), reference))
