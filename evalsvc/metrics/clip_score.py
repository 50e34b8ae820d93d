"""CLIPScore: how well an image fits its prompt, by CLIP."""

from __future__ import annotations

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def clip_score(sets: FeatureSets) -> Estimate:
    """The mean over images of 100 · max(cos(image, prompt), 0), which are the `samples`, [n, 1].

    Source: J. Hessel et al., CLIPScore, arXiv 2104.08718; with 100 as torchmetrics has it, where the paper has 2.5.
    """
    return Estimate.of_images(sets.samples.reshape(len(sets.samples)))


CLIP_SCORE = ImageMetric("clip_score", "clip_score", "nothing", "score", "higher", 1, 1, clip_score, biased=False)
