"""CMMD: the maximum mean discrepancy of CLIP's image embeddings."""

from __future__ import annotations

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.kernel_means import Rows, mean_to, shares_of_mmd, within

SIGMA = 10.0
"""Width of the Gaussian kernel."""
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
