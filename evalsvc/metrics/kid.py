"""KID, the kernel Inception distance: unbiased at every number of images."""

from __future__ import annotations

import math

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.kernel_means import Rows, mean_to, mean_to_others, shares_of_mmd

BLOCK = 1000
"""Images in a block, at most: the subset size of the paper, torch-fidelity and clean-fid."""


def kid(sets: FeatureSets) -> Estimate:
    """The squared maximum mean discrepancy under the kernel (x·y/d + 1)³, over disjoint blocks.

    Samples, and a seeded permutation of the reference's images, are divided into blocks of at most BLOCK images; pair p
    is block p of each, with the shorter list of blocks repeated. With means over all images of their mean kernel to the
    other samples of their block, to the other real images of theirs, and to the real block that they are paired with:

        KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

    Each image counts once, where subsets drawn at random count some often and others never, and each term is unbiased
    at any block size. Where both sides are one block it is torch-fidelity's and clean-fid's with a single subset.
    `block_stderr` is the standard error over the pairs' own values, with real images as what varies too; None with one
    block.

    Source: M. Bińkowski et al., arXiv 1801.01401, section 4; blocks: W. Zaremba et al., B-tests, arXiv 1307.1954.

    Raises:
        InvalidData: the reference's features are not known.
    """
    real = sets.real()
    order = np.random.default_rng(sets.seed).permutation(len(real))
    ours = np.array_split(sets.samples, math.ceil(len(sets.samples) / BLOCK))
    theirs = [real[some] for some in np.array_split(order, math.ceil(len(real) / BLOCK))]
    among = [mean_to_others(block, cubic) for block in theirs]
    within, across, values = [], [], []
    for place, block in enumerate(ours):
        paired = range(place, len(theirs), len(ours)) or [place % len(theirs)]
        within.append(mean_to_others(block, cubic))
        across.append(mean_to(block, np.concatenate([theirs[other] for other in paired]), cubic))
        real_term = np.concatenate([among[other] for other in paired]).mean()
        values.append(float(within[-1].mean() - 2 * across[-1].mean() + real_term))
    inside, outside = np.concatenate(within), np.concatenate(across)
    value = float(inside.mean() - 2 * outside.mean() + np.concatenate(among).mean())
    block_stderr = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    shares = shares_of_mmd(within, across, value)
    return Estimate.of_images(shares, blocks=len(ours), block_size=len(ours[0]), block_stderr=block_stderr)


def cubic(rows: Rows, others: Rows) -> Rows:
    """(x·y/d + 1)³, in float64: a small difference of means above 1 is what is wanted, and float32 moves it by 3e-5."""
    gram: Rows = rows.astype(np.float64) @ others.astype(np.float64).T
    gram /= rows.shape[1]
    gram += 1
    return gram * gram * gram


KID = ImageMetric("kid", "inception/2048", "features", "distance", "lower", 2, 1, kid, biased=False)
