"""Definitions of the metrics of how alike the embeddings of images and captions are."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import Definition
from evalsvc.metrics.definitions.standard_errors import PAIR_PARTS, RATIO

_alignment = partial(
    Definition,
    kind="alignment",
    unit="cosine",
    direction="none",
    item="pair of image and caption, the first caption of each image",
    error=PAIR_PARTS,
    estimator="alignment/2",
    least=2,
)
PHIPSON = "B. Phipson, G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010, equation 2"
RADFORD = "A. Radford et al., arXiv 2103.00020, 2021"
CLIP_LOSS = (
    "mean over pairs of ½ (ln Σⱼ exp s·Sᵢⱼ + ln Σⱼ exp s·Sⱼᵢ) − s·Sᵢᵢ, with S the cosines of images and captions of "
    "a batch"
)

ALIGNMENT = (
    _alignment(
        names=("loss_fitted",),
        formula=f"{CLIP_LOSS}, at the factor s in [0, 100] with the smallest loss; where pairs are no more alike "
        f"than others s is 0, and the loss is ln batch without a standard error",
        unit="nats/pair",
        direction="lower",
        source=RADFORD,
    ),
    _alignment(
        names=("image_to_text_at_<k>", "text_to_image_at_<k>"),
        formula="probability that one of the k nearest captions of an image, or images of a caption, is right; equal "
        "captions are right too, and what is equally near comes in random order",
        unit="fraction",
        direction="higher",
        error=RATIO,
    ),
    _alignment(
        names=("cosine_excess",),
        formula="mean cosine of pairs less that of an image and a caption that are no pair",
        direction="higher",
    ),
    _alignment(
        names=("cosine_between", "cosine_text", "cosine_image"),
        formula="mean cosine of an image and a caption that are no pair, of two captions, or of two images",
    ),
    _alignment(
        names=("p_value",),
        formula="(1 + permutations with as high a mean cosine of pairs) / (1 + permutations), captions put to images "
        "anew within their batch",
        unit="probability",
        error="there is none",
        pairs="a p-value is of all pairs together",
        source=PHIPSON,
    ),
    _alignment(
        names=("neighbour_p_value[_centred]",),
        formula="(1 + permutations with as many neighbour hits) / (1 + permutations), captions put to images anew "
        "within their batch",
        unit="probability",
        error="there is none",
        pairs="a p-value is of all pairs together",
        source=PHIPSON,
    ),
    _alignment(
        names=("neighbour_hits[_centred]",),
        formula="Σ hits / Σ neighbours: how many of the text tokens nearest to each of an image's codes "
        "(`neighbours`, 5) occur in its caption; `_centred` takes the mean of their kind off the rows first",
        unit="fraction",
        direction="higher",
        error=RATIO,
    ),
    _alignment(
        names=("subspace_overlap",),
        formula="Σ |P (x − x̄)|² / Σ |x − x̄|² of the image rows x, with P the projection on the fewest principal "
        "directions that hold half of the text rows' variance",
        unit="fraction",
        item="code that occurs",
        error=RATIO,
        pairs="its items are codes, and those of the task are pairs",
        least=1,
    ),
)
