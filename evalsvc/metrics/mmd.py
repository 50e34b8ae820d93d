"""KID and CMMD: maximum mean discrepancies, from means of a kernel over pairs of rows, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.frechet import Array, without_surplus
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric

Rows = NDArray[Any]
Kernel = Callable[[Rows, Rows], Rows]
"""Kernel function from [a, d] and [b, d] to [a, b]."""

CHUNK_ROWS = 1024


def mean_to(rows: Rows, others: Rows, kernel: Kernel) -> Array:  # [n]
    """Return the mean kernel of each of `rows` with all of `others`, summed in float64."""
    starts = range(0, len(rows), CHUNK_ROWS)
    parts = [kernel(rows[start : start + CHUNK_ROWS], others).mean(1, dtype=np.float64) for start in starts]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Within:
    """Kernel over all pairs of different rows of one block."""

    sums: Array
    """Sum of the kernel of each row with the other rows, [n]."""
    squares: float
    """Sum of the squared kernel over all ordered pairs."""

    @property
    def means(self) -> Array:  # [n]
        """Mean kernel of each row with the other rows, of which there is at least one, [n]."""
        means: Array = self.sums / (len(self.sums) - 1)
        return means

    @property
    def surplus(self) -> float:
        """Excess of n times the squared error from the block's shares: 2 σ₂²/(n - 1)."""
        return 2 * pair_variance(self.sums, self.squares) / (len(self.sums) - 1)


def within(rows: Rows, kernel: Kernel) -> Within:
    """Sum the kernel over pairs of different `rows`, in float64."""
    sums, squares = np.empty(len(rows)), 0.0
    for start in range(0, len(rows), CHUNK_ROWS):
        gram = kernel(rows[start : start + CHUNK_ROWS], rows)
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0
        sums[start : start + len(gram)] = gram.sum(1, dtype=np.float64)
        squares += float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))
    return Within(sums, squares)


def shares_of_mmd(blocks: Sequence[Within], inside: Sequence[Array], across: Sequence[Array], value: float) -> Array:
    """Return the share of each sample in a squared MMD with the estimate `value`, from blocks of samples, [n].

    The shares are the Hoeffding projection on the samples: in E k(x, x') - 2 E k(x, y) + E k(y, y'), a sample x adds
    twice its mean kernel with the other samples (`inside`), and -2 times its mean kernel with the reference (`across`).
    The mean of the shares is `value`. Each block is centred by itself: what its samples share comes by chance from its
    reference block.

    The variance of pairs, which such shares count twice, is subtracted; see `evalsvc.metrics.frechet`.
    """
    moved = [2 * (to_samples - to_real) for to_samples, to_real in zip(inside, across, strict=True)]
    shares = np.concatenate([value + block - block.mean() for block in moved])
    n = len(shares)
    surplus = sum(len(block.sums) / n * block.surplus for block in blocks) / n
    return without_surplus(shares, surplus)


def pair_variance(sums: Array, squares: float) -> float:  # sums [n]
    """Estimate σ₂² of the pairs of a kernel matrix without bias, and without additive terms of single items.

    `sums` are the row sums of the symmetric matrix without its diagonal, `squares` is the sum of the squares of all
    entries off the diagonal. The matrix is U-centred: rows and columns lose their means in such a way that the mean
    square of what is left is unbiased. 0 for fewer than 4 items.

    Source: G. Székely, M. Rizzo, Partial distance correlation with methods for dissimilarities, Annals of Statistics
    42, 2014, definitions 2 and 3.
    """
    n = len(sums)
    if n < 4:
        return 0.0
    centred = squares - 2 * float(sums @ sums) / (n - 2) + float(sums.sum()) ** 2 / ((n - 1) * (n - 2))
    return max(0.0, centred / (n * (n - 3)))


BLOCK = 1000
"""Largest number of images in a block: the subset size of the paper, torch-fidelity and clean-fid."""


def kid(sets: FeatureSets) -> Estimate:
    """Compute the squared maximum mean discrepancy under the kernel (x·y/d + 1)³, over disjoint blocks.

    A seeded permutation of the samples, and one of the reference's images, are divided into blocks of at most BLOCK
    images; pair p is block p of each, with the shorter list of blocks repeated. With means over all images of the mean
    kernel to the other samples of the block, to the other real images of the block, and to the paired block:

        KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

    Each image counts once, where subsets drawn at random count some images often and others never. The value is
    unbiased at any number of images. Where both sides are one block, the value equals torch-fidelity's and clean-fid's
    with a single subset.

    The error is that of the samples' shares, with the variance of pairs counted once and the reference treated as
    fixed. `block_stderr` is the standard error over the values of the pairs of blocks; None with one block.

    Source: M. Bińkowski et al., arXiv 1801.01401, section 4; blocks: W. Zaremba et al., B-tests, arXiv 1307.1954; the
    error: W. Hoeffding, A class of statistics with asymptotically normal distribution, Annals of Mathematical
    Statistics 19, 1948, equation 5.13.
    """
    real = sets.real()
    random = np.random.default_rng(sets.seed)
    real_blocks = [real[rows] for rows in np.array_split(random.permutation(len(real)), math.ceil(len(real) / BLOCK))]
    order = random.permutation(len(sets.samples))
    sample_blocks = np.array_split(sets.samples[order], math.ceil(len(order) / BLOCK))
    among = [within(block, cubic).means for block in real_blocks]
    blocks, across, values = [within(block, cubic) for block in sample_blocks], [], []
    for place, block in enumerate(sample_blocks):
        paired = range(place, len(real_blocks), len(sample_blocks)) or [place % len(real_blocks)]
        across.append(mean_to(block, np.concatenate([real_blocks[other] for other in paired]), cubic))
        real_term = np.concatenate([among[other] for other in paired]).mean()
        values.append(float(blocks[place].means.mean() - 2 * across[-1].mean() + real_term))
    inside = [block.means for block in blocks]
    means = [float(np.concatenate(term).mean()) for term in (inside, across, among)]
    shares = np.empty(len(order))
    shares[order] = shares_of_mmd(blocks, inside, across, means[0] - 2 * means[1] + means[2])
    block_stderr = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate.of_images(
        shares, blocks=len(sample_blocks), block_size=len(sample_blocks[0]), block_stderr=block_stderr
    )


def cubic(rows: Rows, others: Rows) -> Rows:
    """Compute (x·y/d + 1)³ in float64: KID is a small difference of means above 1, and float32 moves it by 3e-5."""
    gram: Rows = rows.astype(np.float64) @ others.astype(np.float64).T
    gram /= rows.shape[1]
    gram += 1
    return gram * gram * gram


KID = ImageMetric("kid", "inception/2048", "features", "distance", "lower", 2, 2, kid, biased=False)


SIGMA = 10.0
SCALE = 1000.0
"""Factor by which the paper multiplies the discrepancy for readable values."""


def cmmd(sets: FeatureSets) -> Estimate:
    """Compute 1000 · the squared MMD of embeddings of length one under exp(-|x - y|² / (2 · 10²)), over all pairs.

    Pairs of an image with itself count, as in the authors' program; the detail `unbiased` is the value without these
    pairs. The error is that of the shares, with the variance of pairs counted once and the reference treated as fixed.

    Source: S. Jayasumana et al., Rethinking FID, arXiv 2401.09603, equation 4, and google-research/cmmd/distance.py;
    the error: W. Hoeffding, Annals of Mathematical Statistics 19, 1948, equation 5.13.
    """
    samples, real = _of_length_one(sets.samples), _of_length_one(sets.real())
    block, across = within(samples, below_one), mean_to(samples, real, below_one)
    inside = block.sums / len(samples)
    among = float(within(real, below_one).sums.mean()) / len(real)
    value = float(inside.mean()) - 2 * float(across.mean()) + among
    self_pairs = -float(inside.mean()) / (len(samples) - 1) - among / (len(real) - 1)
    shares = SCALE * shares_of_mmd([block], [inside], [across], value)
    return Estimate.of_images(shares, unbiased=SCALE * (value - self_pairs))


def below_one(rows: Rows, others: Rows) -> Rows:
    """Compute the kernel less 1 for rows of length one, where |x - y|² = 2 - 2 x·y.

    The kernel is nearly 1 everywhere, and the discrepancy is a small difference of kernel values. Without the ones,
    which cancel, float32 holds the difference.
    """
    gram: Rows = rows @ others.T
    gram -= 1
    gram /= SIGMA**2
    return np.expm1(gram, out=gram)


def _of_length_one(features: Rows) -> Rows:
    rows: Rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    return rows


CMMD = ImageMetric("cmmd", "clip", "features", "distance", "lower", 2, 2, cmmd)
