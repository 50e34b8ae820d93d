"""Scores that need no real images: CLIPScore, and the Inception Score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evalsvc.metrics.image_metric import Estimate, FeatureSets, ImageMetric


def clip_score(sets: FeatureSets) -> Estimate:
    """Compute the mean over images of w · max(cos(image, text), 0). The `samples` are these scores, [n, 1].

    `clip_score` has the prompt as text and torchmetrics' w = 100; `clip_s` has the prompt after "A photo depicts " and
    w = 2.5, as the authors. Source: J. Hessel et al., CLIPScore, arXiv 2104.08718; jmhessel/clipscore, `clipscore.py`.
    """
    return Estimate.of_images(sets.samples.reshape(len(sets.samples)))


CLIP_SCORE = ImageMetric("clip_score", "clip_score", "nothing", "score", "higher", 1, 1, clip_score, biased=False)
CLIP_S = ImageMetric("clip_s", "clip_s", "nothing", "score", "higher", 1, 1, clip_score, biased=False)


SPLITS = 10
SPLIT_SIZE = 5000
"""Number of images in a split of guided-diffusion's evaluator."""


def inception_score(sets: FeatureSets) -> Estimate:
    """Compute the mean over splits of exp(mean KL(p(y|x) ‖ p(y))), from the classifier's logits [n, 1008].

    Images are permuted by the seed and split as in torch-fidelity. An image changes the score S of its split by S (KL -
    mean KL), since the mean KL has no derivative by p(y). `split_std` is the standard deviation over splits, which
    papers print after ±; it is no standard error.

    Source: T. Salimans et al., arXiv 1606.03498.
    """
    n = len(sets.samples)
    order = np.random.default_rng(sets.seed).permutation(n)
    return _score(sets, [order[split * n // SPLITS : (split + 1) * n // SPLITS] for split in range(SPLITS)])


def score_as_adm(sets: FeatureSets) -> Estimate:
    """Compute `inception_score` over splits of SPLIT_SIZE images in order, as guided-diffusion's evaluator."""
    order = np.arange(len(sets.samples))
    return _score(sets, [order[start : start + SPLIT_SIZE] for start in range(0, len(order), SPLIT_SIZE)])


def _score(sets: FeatureSets, splits: Sequence[NDArray[np.int64]]) -> Estimate:
    n = len(sets.samples)
    shares, scores = np.empty(n), []
    for chosen in splits:
        logits = sets.samples[chosen].astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        p = np.exp(log_p)
        divergences = (p * (log_p - np.log(p.mean(0)))).sum(1)  # of each from the mean, in nats
        score = float(np.exp(divergences.mean()))
        shares[chosen] = n / (len(splits) * len(chosen)) * score * (1 + divergences - divergences.mean())
        scores.append(score)
    return Estimate.of_images(shares, splits=len(splits), split_std=float(np.std(scores)))


# With fewer images than classes, the predicted classes cannot be varied.
INCEPTION_SCORE = ImageMetric(
    "inception_score", "inception/1008", "nothing", "score", "higher", SPLITS * 100, 1, inception_score
)
INCEPTION_SCORE_ADM = replace(INCEPTION_SCORE, name="inception_score_adm", estimate=score_as_adm, on_request=True)
