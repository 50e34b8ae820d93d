"""The Fréchet distances that the field reports: FID on Inception's features, FD-DINOv2 on DINOv2's."""

from __future__ import annotations

from evalsvc.metrics.frechet import frechet_shares
from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def frechet_estimate(sets: FeatureSets) -> Estimate:
    """Distance to the reference's moments; see `frechet_shares` for its error. It is too large by about C/n.

    Raises:
        InvalidData: no more images than features, or no reference.
    """
    _, shares = frechet_shares(sets.samples, sets.moments())
    return Estimate.of_images(shares)


def _distance(name: str, features: str, dimensions: int) -> ImageMetric:
    # Of no more images than features the covariance has no full rank, and the distance is mostly what it misses.
    return ImageMetric(name, features, "moments", "distance", "lower", dimensions + 1, 2, frechet_estimate)


FID = _distance("fid", "inception/2048", 2048)
"""Source: M. Heusel et al., arXiv 1706.08500."""

FID64 = _distance("fid64", "inception/64", 64)
"""On the first 64 features, which a few hundred images can bear."""

FD_DINOV2 = _distance("fd_dinov2", "dinov2", 1024)
"""Source: G. Stein et al., arXiv 2306.04675, whose network is ViT-L/14 with 1,024 features."""
