"""Fréchet distances: value, shares of images and of pairs, the error of few images, FID∞; and reconstructed images."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import combinations
from operator import add
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from evalsvc.errors import InvalidData, NonFinite
from evalsvc.metrics.fid import FID64, GROUPS, fid_infinity, frechet_estimate
from evalsvc.metrics.frechet import LEAST, Moments, frechet_distance, frechet_shares, without_surplus
from evalsvc.metrics.image_metric import FeatureSets
from evalsvc.metrics.reconstruction import codebook_use, paired_frechet_shares, psnr, ssim


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
            (lambda: Moments.of(np.ones((1, 3))).covariance, "of 1 feature rows is not defined; give at least 2"),
            (lambda: Moments.of(np.ones((0, 3))).mean, "no mean"),
            (lambda: Moments.of(np.ones(3)), r"shape \[3\]"),
            (lambda: Moments.of(np.ones((2, 3))) + Moments.of(np.ones((2, 4))), "3 and of 4 dimensions"),
            (lambda: Moments.of(np.ones((2, 3))) - Moments.of(np.ones((3, 3))), "group of 3 cannot be removed from 2"),
            (lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "2 and of 3 dimensions"),
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


def delete_one(first: np.ndarray, second: np.ndarray | Moments) -> np.ndarray:
    """(n - 1) (θ - θ_(i)), centred, from as many distances as there are rows; without their pairs in features."""
    one, other, n = Moments.of(first), second if isinstance(second, Moments) else Moments.of(second), len(first)
    others = [other] * n if isinstance(second, Moments) else [other - Moments.of(row[None]) for row in second]
    without = [distance(one - Moments.of(row[None]), rest) for row, rest in zip(first, others, strict=True)]
    return np.asarray((n - 1) * (np.mean(without) - np.array(without)))


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
        assert np.abs(shares - value - slow).max() < tolerance * np.abs(slow).max()
        assert shares.std() == pytest.approx(slow.std(), rel=tolerance)

    def test_surplus_is_the_variance_of_pairs(self, generator: np.random.Generator) -> None:
        """Of normal features with the identity as covariance σ₂² = d + d (d + 1)/8, in closed form."""
        d, n = 6, 4000
        found = frechet_shares(generator.normal(size=(n, d)), SimpleNamespace(mean=np.zeros(d), covariance=np.eye(d)))
        assert found.surplus == pytest.approx(2 * (d + d * (d + 1) / 8) / n**2, rel=0.15)

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


def test_no_more_images_than_features_are_refused(reference: Moments) -> None:
    for estimate in (frechet_estimate, fid_infinity):
        with pytest.raises(InvalidData, match="8 images are too few for a distance on 8 features; give more"):
            estimate(FeatureSets(draw(1, 8), reference))
    with pytest.raises(InvalidData, match="4 images are too few for a distance on 4 features; give more"):
        paired_frechet_shares(*pairs(0, 4))
    with pytest.raises(InvalidData, match=r"one shape on both sides, not \[9, 4\] and \[8, 4\]"):
        paired_frechet_shares(*(pairs(0, n)[0] for n in (9, 8)))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two images and what noise made of them, the second worse than the first."""
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(0, 256, (2, 3, 13, 16), generator=generator)
    noise = torch.randint(-40, 41, references.shape, generator=generator) * torch.tensor([1, 3])[:, None, None, None]
    return (references + noise).clamp(0, 255).to(torch.uint8), references.to(torch.uint8)


def plain_ssim(x: list[list[float]], y: list[list[float]]) -> float:
    """One channel, window by window, as in the paper's equations 13 to 16."""
    window = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, window))
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            cells = [
                (window[i][j] / total, x[top + i][left + j], y[top + i][left + j]) for i in range(11) for j in range(11)
            ]
            mx, my = sum(w * a for w, a, _ in cells), sum(w * b for w, _, b in cells)
            vx, vy = sum(w * (a - mx) ** 2 for w, a, _ in cells), sum(w * (b - my) ** 2 for w, _, b in cells)
            cov = sum(w * (a - mx) * (b - my) for w, a, b in cells)
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))
    return sum(values) / len(values)


def test_ssim_equals_a_slow_loop(pair: tuple[Tensor, Tensor]) -> None:
    images, references = pair
    wanted = [
        sum(plain_ssim(x.tolist(), y.tolist()) for x, y in zip(image, reference, strict=True)) / 3
        for image, reference in zip(images, references, strict=True)
    ]
    assert ssim(images, references).tolist() == pytest.approx(wanted, abs=1e-10)


def test_ssim_of_equal_and_of_flat_images(pair: tuple[Tensor, Tensor]) -> None:
    """Of two flat images only the luminance term is left."""
    assert ssim(pair[1], pair[1]).tolist() == pytest.approx([1, 1], abs=1e-12)
    a, b = (torch.full((1, 3, 11, 11), level, dtype=torch.uint8) for level in (100, 150))
    c1 = 2.55**2
    assert ssim(a, b).item() == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)


def test_psnr_by_hand(pair: tuple[Tensor, Tensor]) -> None:
    """An error of 5 levels everywhere; differences of bytes must not wrap around."""
    dark, light = (torch.full((1, 3, 4, 4), level, dtype=torch.uint8) for level in (0, 5))
    assert psnr(dark, light).item() == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(light, dark).item() == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(pair[1], pair[1]).tolist() == [math.inf, math.inf]
    both, errors = psnr(*pair), pair[0].double() - pair[1].double()
    assert both[1].item() == pytest.approx(10 * math.log10(255**2 / errors[1].square().mean().item()))
    assert both[1] < both[0]


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_cannot_be_compared(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for images_, references in ((images, images[:, :, 1:]), (images[0], images[0]), (images.float(), images)):
        with pytest.raises(InvalidData, match=r"must be uint8 \[B, 3, H, W\] of one shape, not"):
            metric(images_, references)
    with pytest.raises(InvalidData, match=r"11x11 pixels or more, not \[16, 10\]"):
        ssim(images[..., :10], images[..., :10])


def test_codebook_use() -> None:
    assert codebook_use(torch.tensor([2, 0, 0, 2, 0, 0, 0, 0])) == (0.25, pytest.approx(2))
    assert codebook_use(torch.ones(8, dtype=torch.int64)) == (1, pytest.approx(8))
    skewed = codebook_use(torch.tensor([3, 1]))
    assert skewed.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    with pytest.raises(InvalidData, match="at least one code"):
        codebook_use(torch.zeros(8, dtype=torch.int64))


SCALES = np.array([1, 2, 3, 4])


def pairs(seed: int, n: int = 200, moved: float = 0.2, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features and the same a little off, as those of images and their reconstructions are."""
    random = np.random.default_rng(seed)
    originals = random.normal(size=(n, 4)) * SCALES
    return originals, (1 - moved / 2) * originals + noise * random.normal(size=(n, 4)) + moved


@pytest.mark.parametrize(("moved", "noise"), [(0.2, 0.3), (0.0, 0.3), (0.0, 3.0), (1.0, 0.3)])
def test_shares_are_what_deleting_each_pair_does(moved: float, noise: float) -> None:
    """Near zero, where first derivatives vanish on both sides, and away from zero."""
    first, second = pairs(1, 300, moved, noise)
    found, slow = paired_frechet_shares(first, second), delete_one(first, second)
    together = distance(Moments.of(first), Moments.of(second))
    assert (found.value, found.shares.mean()) == (pytest.approx(together, rel=1e-9), pytest.approx(together, rel=1e-9))
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
