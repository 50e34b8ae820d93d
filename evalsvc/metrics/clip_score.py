"""CLIPScore: how well an image matches its prompt, measured by CLIP."""

from __future__ import annotations

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def clip_score(sets: FeatureSets) -> Estimate:
    """Compute the mean over images of 100 · max(cos(image, prompt), 0). The `samples` are these scores, [n, 1].

    Source: J. Hessel et al., CLIPScore, arXiv 2104.08718; with the factor 100 of torchmetrics instead of the paper's
    2.5.
    """
    return Estimate.of_images(sets.samples.reshape(len(sets.samples)))


CLIP_SCORE = ImageMetric("clip_score", "clip_score", "nothing", "score", "higher", 1, 1, clip_score, biased=False)
