"""Reconstructed images: pixel by pixel, as distributions of pairs, and the codes that they use."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from evalsvc.errors import InvalidData
from evalsvc.metrics.frechet import Moments, frechet_distance
from evalsvc.metrics.reconstruction import codebook_use, paired_frechet_shares, psnr, ssim


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


def distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def delete_one(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n - 1) (θ - θ_(i)), centred, from as many distances as there are pairs."""
    one, other, n = Moments.of(first), Moments.of(second), len(first)
    without = [distance(one - Moments.of(first[[i]]), other - Moments.of(second[[i]])) for i in range(n)]
    return np.asarray((n - 1) * (np.mean(without) - np.array(without)))


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


def test_too_few_pairs_are_refused() -> None:
    first, second = pairs(0, 4)
    with pytest.raises(InvalidData, match="4 images are too few for a distance on 4 features; give more"):
        paired_frechet_shares(first, second)
    with pytest.raises(InvalidData, match=r"one shape on both sides, not \[9, 4\] and \[8, 4\]"):
        paired_frechet_shares(*(pairs(0, n)[0] for n in (9, 8)))
