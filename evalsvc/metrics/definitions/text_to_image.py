"""Definitions of the metrics of sampled images."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import Definition
from evalsvc.metrics.definitions.standard_errors import IMAGE_SHARES, RATIO, SHARE

_image = partial(
    Definition,
    kind="text_to_image",
    unit="distance",
    direction="lower",
    item="sampled image",
    error=IMAGE_SHARES,
)
FRECHET = (
    "|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with the means μ and covariances Σ of the features of sampled and of "
    "real images"
)
INFINITY = (
    "18 θ₀ − 25 θ₁ + 8 θ₂, the Fréchet distance extrapolated to infinitely many images, unbiased for light tails. Of "
    "six random groups of images, θ₀ is the distance of all, θ₁ the mean without one, θ₂ that without two"
)
INFINITY_ERROR = (
    "√(s² + r²), with s the error of the shares of images, and r an estimate of the extrapolation's error; at least "
    "−value / 1.9. Two checkpoints are compared with s alone"
)
HEUSEL = "M. Heusel et al., arXiv 1706.08500, 2017"
KYNKAANNIEMI = "T. Kynkäänniemi et al., arXiv 1904.06991, 2019"
NAEEM = "M. F. Naeem et al., arXiv 2002.09797, 2020"
INFINITY_SOURCE = (
    "M. J. Chong, D. Forsyth, arXiv 1911.07023, 2020, for the aim; W. Schucany, H. Gray, D. Owen, Journal of the "
    "American Statistical Association 66, 1971, equation 3, for the jackknife of second order"
)
GROUPS_ERROR = (
    "jackknife over 20 groups of sampled images, which errs on the large side. Source: B. Efron, C. Stein, "
    "Annals of Statistics 9, 1981"
)
TWENTIETH = "a random twentieth of the sampled images, which the jackknife leaves out together"
NEIGHBOURS = "a real image's ball reaches to its 5th nearest real image, and at most 10,000 images a side have one"

TEXT_TO_IMAGE = (
    _image(
        names=("fid",),
        formula=f"{FRECHET}, all 2,048 of Inception; too large by about C / n",
        estimator="fid/3",
        least=2049,
        source=HEUSEL,
    ),
    _image(
        names=("fid64",),
        formula=f"{FRECHET}, the first 64 of Inception; too large by about C / n",
        estimator="fid64/3",
        least=65,
        source=HEUSEL,
    ),
    _image(
        names=("fd_dinov2",),
        formula=f"{FRECHET}, the 1,024 of DINOv2 ViT-L/14; too large by about C / n",
        estimator="fd_dinov2/3",
        least=1025,
        source="G. Stein et al., arXiv 2306.04675, 2023",
    ),
    _image(
        names=("fid_infinity",),
        range="any",
        formula=f"{INFINITY}, on all 2,048 features of Inception",
        error=INFINITY_ERROR,
        estimator="fid_infinity/2",
        least=29659,
        source=INFINITY_SOURCE,
    ),
    _image(
        names=("fid64_infinity",),
        range="any",
        formula=f"{INFINITY}, on the first 64 features of Inception",
        error=INFINITY_ERROR,
        estimator="fid64_infinity/2",
        least=260,
        source=INFINITY_SOURCE,
    ),
    _image(
        names=("kid",),
        range="any",
        formula="mean k(x, x') + mean k(y, y') − 2 mean k(x, y) with k(x, y) = (x·y / 2048 + 1)³, of sampled images x "
        "and real images y, over disjoint blocks of at most 1,000; pairs of an image with itself do not count",
        estimator="kid/2",
        least=2,
        source="M. Bińkowski et al., arXiv 1801.01401, 2018; blocks: W. Zaremba et al., arXiv 1307.1954, 2013",
    ),
    _image(
        names=("cmmd",),
        formula="1000 · (mean k(x, x') + mean k(y, y') − 2 mean k(x, y)) with k(x, y) = exp(−|x − y|² / 200), of CLIP "
        "embeddings of length one, over all pairs, those of an image with itself included",
        estimator="cmmd/2",
        least=2,
        source="S. Jayasumana et al., arXiv 2401.09603, 2024",
    ),
    _image(
        names=("precision",),
        formula=f"share of the sampled images that lie in the ball of a real image: {NEIGHBOURS}",
        unit="fraction",
        direction="higher",
        error=SHARE,
        estimator="precision/2",
        least=20,
        source=KYNKAANNIEMI,
    ),
    _image(
        names=("density",),
        formula=f"number of real images' balls that hold a sampled image, over 5, on average: {NEIGHBOURS}",
        unit="ratio",
        direction="higher",
        error=RATIO,
        estimator="density/1",
        least=20,
        source=NAEEM,
    ),
    _image(
        names=("recall",),
        formula="share of the real images that lie in the ball of a sampled image, which reaches to its 5th nearest "
        "sampled image; at most 10,000 images a side",
        unit="fraction",
        direction="higher",
        error=GROUPS_ERROR,
        estimator="recall/2",
        least=20,
        group=TWENTIETH,
        pairs="the items of the value are the real images",
        source=KYNKAANNIEMI,
    ),
    _image(
        names=("coverage",),
        formula=f"share of the real images whose ball holds a sampled image: {NEIGHBOURS}",
        unit="fraction",
        direction="higher",
        error=GROUPS_ERROR,
        estimator="coverage/2",
        least=20,
        group=TWENTIETH,
        pairs="the items of the value are the real images",
        source=NAEEM,
    ),
    _image(
        names=("inception_score",),
        formula="mean over 10 splits of exp(mean KL(p(y | image) ‖ p(y))), with p(y) the mean of p(y | image) over the "
        "images of a split, of Inception's 1,008 classes",
        unit="score",
        direction="higher",
        estimator="inception_score/1",
        least=1000,
        source="T. Salimans et al., arXiv 1606.03498, 2016",
    ),
    _image(
        names=("clip_score",),
        formula="mean of 100 · max(cos(image, caption), 0) of CLIP's embeddings",
        unit="score",
        direction="higher",
        error=RATIO,
        estimator="clip_score/1",
        source="J. Hessel et al., arXiv 2104.08718, 2021, whose factor is 2.5",
    ),
    _image(
        names=("agreement",),
        formula="share of the sampled images in which the classifier reads the label that the caption names",
        unit="fraction",
        direction="higher",
        error=SHARE,
    ),
)
