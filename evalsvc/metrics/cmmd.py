"""CMMD: the maximum mean discrepancy of CLIP's image embeddings."""

from __future__ import annotations

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric
from evalsvc.metrics.kernel_means import Rows, mean_to, shares_of_mmd, within

SIGMA = 10.0
"""Of the Gaussian kernel."""
SCALE = 1000.0
"""What the paper multiplies with, so that values can be read."""


def cmmd(sets: FeatureSets) -> Estimate:
    """Compute 1000 · the squared MMD of embeddings of length one under exp(-|x - y|² / (2 · 10²)), over all pairs.

    Pairs of an image with itself count, as in the authors' program; `unbiased` is without them. The error is that of
    the shares, with the variance of pairs counted once and the reference taken as given.

    Source: S. Jayasumana et al., Rethinking FID, arXiv 2401.09603, equation 4, and google-research/cmmd/distance.py;
    the error: W. Hoeffding, Annals of Mathematical Statistics 19, 1948, equation 5.13.

    Raises:
        InvalidData: the reference's features are not known.
    """
    ours, theirs = _of_length_one(sets.samples), _of_length_one(sets.real())
    block, across = within(ours, below_one), mean_to(ours, theirs, below_one)
    inside = block.sums / len(ours)
    among = float(within(theirs, below_one).sums.mean()) / len(theirs)
    value = float(inside.mean()) - 2 * float(across.mean()) + among
    self_pairs = -float(inside.mean()) / (len(ours) - 1) - among / (len(theirs) - 1)
    shares = SCALE * shares_of_mmd([block], [inside], [across], value)
    return Estimate.of_images(shares, unbiased=SCALE * (value - self_pairs))


def below_one(rows: Rows, others: Rows) -> Rows:
    """The kernel less 1, of rows of length one, so that |x - y|² = 2 - 2 x·y.

    It is nearly 1 everywhere and a discrepancy the small rest; the ones cancel, and float32 holds what is left.
    """
    gram: Rows = rows @ others.T
    gram -= 1
    gram /= SIGMA**2
    return np.expm1(gram, out=gram)


def _of_length_one(features: Rows) -> Rows:
    rows: Rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    return rows


CMMD = ImageMetric("cmmd", "clip", "features", "distance", "lower", 2, 2, cmmd)
