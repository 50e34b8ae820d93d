"""KID, the kernel Inception distance: unbiased at every number of images."""

from __future__ import annotations

import math

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.kernel_means import Rows, mean_to, shares_of_mmd, within

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
