"""A metric of another package: how far images are from their mean, in Inception's first features."""

import numpy as np

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def spread(sets: FeatureSets) -> Estimate:
    """The mean distance from the mean of all images."""
    return Estimate.of_images(np.linalg.norm(sets.samples - sets.samples.mean(0), axis=1))


SPREAD = ImageMetric("spread", "inception/64", "nothing", "1", "none", 2, 1, spread, biased=False)
