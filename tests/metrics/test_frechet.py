"""Fréchet distances: their value, the shares of images, and the error of few images."""

from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.fid import FD_DINOV2, FID, FID64
from evalsvc.metrics.frechet import (
    LEAST,
    Linearised,
    Moments,
    frechet_distance,
    frechet_shares,
    pair_variance,
    without_surplus,
)
from evalsvc.metrics.image_metric import FeatureSets


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


class TestMoments:
    def test_are_numpys(self, generator: np.random.Generator) -> None:
        features = generator.normal(3, 2, (50, 7))
        moments = Moments.of(features)
        assert moments.n == 50
        np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-12)

    def test_merged_shards_equal_one_pass(self, generator: np.random.Generator) -> None:
        features = generator.gamma(0.3, 1, (1000, 64)).astype(np.float32)  # as skewed as Inception's
        parts = np.split(features, [100, 101, 640])
        whole, merged = Moments.of(features), reduce(add, [Moments.of(parts[index]) for index in (3, 1, 0, 2)])
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
        other = Moments.of(generator.gamma(0.4, 1, (800, 64)))
        assert distance(merged, other) == pytest.approx(distance(whole, other), rel=1e-12)

    def test_a_group_is_taken_out(self, generator: np.random.Generator) -> None:
        features = generator.normal(size=(30, 5))
        rest = Moments.of(features) - Moments.of(features[:12])
        np.testing.assert_allclose(rest.covariance, np.cov(features[12:], rowvar=False), rtol=1e-10)

    def test_float32_features_are_summed_in_float64(self) -> None:
        features = np.full((20_000, 2), 0.1, np.float32)
        assert Moments.of(features).mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)

    def test_too_few(self) -> None:
        with pytest.raises(InvalidData, match="of 1 feature rows is not defined; give at least 2 images"):
            _ = Moments.of(np.ones((1, 3))).covariance
        with pytest.raises(InvalidData, match="no mean"):
            _ = Moments.of(np.ones((0, 3))).mean

    def test_what_does_not_fit(self) -> None:
        small = Moments.of(np.ones((2, 3)))
        with pytest.raises(InvalidData, match=r"shape \[3\]"):
            Moments.of(np.ones(3))
        with pytest.raises(InvalidData, match="3 and of 4 dimensions"):
            _ = small + Moments.of(np.ones((2, 4)))
        with pytest.raises(InvalidData, match="a group of 3 cannot be removed from 2"):
            _ = small - Moments.of(np.ones((3, 3)))

    def test_nan_names_its_row(self) -> None:
        features = np.zeros((4, 2))
        features[2, 1] = np.nan
        with pytest.raises(NonFinite, match="1 of 4 feature rows hold NaN or infinity, first row 2"):
            Moments.of(features)


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

    def test_constant_images(self) -> None:
        """Covariances of zeros: the means alone count."""
        zeros = np.zeros((3, 3))
        assert frechet_distance([1, 0, 0], zeros, [0, 2, 0], zeros) == pytest.approx(5)

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(InvalidData, match="2 and of 3 dimensions cannot be compared"):
            frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
        with pytest.raises(InvalidData, match=r"\[2\] and \[3, 3\]"):
            frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))
        with pytest.raises(NonFinite):
            frechet_distance([np.nan], np.eye(1), np.zeros(1), np.eye(1))


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

    @pytest.mark.parametrize("shift", [0.0, 0.3])
    def test_error_is_the_spread_over_samples(self, generator: np.random.Generator, shift: float) -> None:
        """Where samples and reference are of one distribution a jackknife is √2 too large; its surplus is taken off."""
        reference = SimpleNamespace(mean=np.zeros(8), covariance=np.eye(8))
        found = [frechet_shares(generator.normal(shift, 1, (200, 8)), reference) for _ in range(200)]
        spread = np.std([one.value for one in found], ddof=1)
        raw, error = (
            np.sqrt(np.mean([shares.var(ddof=1) / 200 for shares in kind]))
            for kind in ([one.shares for one in found], [calibrated(one) for one in found])
        )
        assert 0.85 < error / spread < 1.15
        assert raw > 1.25 * spread or shift > 0

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
        value, shares = found.value, found.shares
        slow = delete_one(features, reference)
        assert value == pytest.approx(distance(Moments.of(features), reference), rel=1e-9)
        assert shares.std() == pytest.approx(slow.std(), rel=0.01)

    def test_no_more_rows_than_features(self, generator: np.random.Generator) -> None:
        with pytest.raises(InvalidData, match="8 images are too few for a distance on 8 features; give more"):
            frechet_shares(generator.normal(size=(8, 8)), Moments.of(generator.normal(size=(20, 8))))


def test_pair_variance_equals_centring_entry_by_entry() -> None:
    """The U-centred matrix, as printed."""
    random = np.random.default_rng(0)
    gram = random.normal(size=(11, 11))
    gram += gram.T + np.add.outer(*[random.normal(size=11)] * 2)
    np.fill_diagonal(gram, 0)
    n, rows = 11, gram.sum(1)
    total, squares = 0.0, 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                centred = gram[i, j] - rows[i] / (n - 2) - rows[j] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
                total += centred**2
                squares += gram[i, j] ** 2
    assert pair_variance(rows, squares) == pytest.approx(total / (n * (n - 3)), rel=1e-12)


def test_three_items_have_no_pair_variance() -> None:
    assert pair_variance(np.zeros(3), 1.0) == 0


def test_shares_lose_the_surplus_and_keep_their_mean() -> None:
    shares = np.random.default_rng(0).normal(3, 2, 500)
    variance = shares.var(ddof=1) / 500
    for surplus in (0.0, 0.3 * variance, 0.9 * variance):
        found = without_surplus(shares, surplus)
        assert found.mean() == pytest.approx(shares.mean(), rel=1e-12)
        assert found.var(ddof=1) / 500 == pytest.approx(max(variance - surplus, LEAST * variance), rel=1e-9)
    assert (without_surplus(np.ones(3), 1.0) == 1).all()
    assert (without_surplus(np.ones(1), 1.0) == 1).all()


def theirs(first: np.ndarray, second: np.ndarray) -> float:
    """By torch-fidelity, which adds the means up in float32."""
    statistics = [fid_features_to_statistics(torch.tensor(side)) for side in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_is_torch_fidelitys_on_real_features(smoke_features: dict[str, np.ndarray]) -> None:
    images, blurred = smoke_features["images_64"], smoke_features["blurred_64"]
    found = FID64.estimate(FeatureSets(blurred, Moments.of(images)))
    assert found.value == pytest.approx(theirs(blurred, images), rel=1e-5)
    assert found.stderr is not None
    assert 0 < found.stderr < found.value / 3


@pytest.mark.usefixtures("many_cases")
def test_all_features_of_few_images_are_theirs(smoke_features: dict[str, np.ndarray]) -> None:
    """85 images on 2,048 features: the null space of the product adds 2e-6 to what the libraries compute."""
    images, blurred = smoke_features["images_2048"], smoke_features["blurred_2048"]
    first, second = Moments.of(blurred), Moments.of(images)
    found = frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert found == pytest.approx(float(smoke_features["torch_fidelity_2048"]), rel=1e-5)
    assert found == pytest.approx(float(smoke_features["clean_fid_2048"]), rel=1e-5)


def test_too_few_images_are_refused(smoke_features: dict[str, np.ndarray]) -> None:
    assert (FID.min_images, FID64.min_images, FD_DINOV2.min_images) == (2049, 65, 1025)
    images = smoke_features["images_2048"]
    with pytest.raises(InvalidData, match="85 images are too few for a distance on 2,048 features"):
        FID.estimate(FeatureSets(images, Moments.of(images[:, :])))


@pytest.mark.parametrize(("n", "once"), [(100, False), (255, False), (256, True)])
def test_pairs_are_counted_once_from_four_images_per_feature_on(n: int, once: bool) -> None:
    """With fewer the correction takes off too much: unchanged checkpoints are told apart twice as often as stated."""
    random = np.random.default_rng(1)
    features = random.standard_normal((n, 64)).astype(np.float32)
    reference = Moments.of(random.standard_normal((5_000, 64)))
    found, shares = FID64.estimate(FeatureSets(features, reference)), frechet_shares(features, reference).shares
    assert found.per_image is not None
    assert found.value == pytest.approx(float(shares.mean()))
    assert (float(found.per_image.std()) < 0.9 * float(shares.std())) == once
