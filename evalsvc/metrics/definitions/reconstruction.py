"""Definitions of the metrics of images that were encoded and decoded."""

from __future__ import annotations

from functools import partial

from evalsvc.metrics.definitions.definition import Definition
from evalsvc.metrics.definitions.standard_errors import RATIO
from evalsvc.metrics.definitions.text_to_image import HEUSEL

_reconstruction = partial(
    Definition,
    kind="reconstruction",
    unit="distance",
    direction="lower",
    item="image",
    error=RATIO,
    estimator="reconstruction/2",
)

RECONSTRUCTION = (
    _reconstruction(
        names=("psnr",),
        formula="mean over images of 10 log₁₀(255² / mean squared error of pixels and channels); infinite where an "
        "image comes back exactly",
        unit="dB",
        direction="higher",
    ),
    _reconstruction(
        names=("ssim",),
        formula="mean over images, channels and windows of (2 μ₁μ₂ + c₁)(2 σ₁₂ + c₂) / ((μ₁² + μ₂² + c₁)(σ₁² + σ₂² + "
        "c₂)), with Gaussian windows of 11 × 11 pixels, σ = 1.5, c₁ = (.01 · 255)², c₂ = (.03 · 255)²",
        unit="similarity",
        direction="higher",
        source="Z. Wang et al., IEEE Transactions on Image Processing 13, 2004, equation 13",
    ),
    _reconstruction(
        names=("codebook_use",),
        formula="different codes that occur / codes of the codebook",
        unit="fraction",
        direction="none",
        error="there is none",
        pairs="the value is of the codes of all images together",
    ),
    _reconstruction(
        names=("codebook_perplexity",),
        companion_of=("perplexity$", "use"),
        formula="e to the entropy −Σ f ln f of the frequencies f of the codes",
        unit="perplexity",
        direction="none",
        error="there is none",
        pairs="the value is of the codes of all images together",
    ),
    _reconstruction(
        names=("fid",),
        formula="|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of originals and reconstructions: all 2,048 features of "
        "Inception",
        error="as shares of images, each of which is taken out on both sides",
        least=2049,
        source=HEUSEL,
    ),
    _reconstruction(
        names=("fid64",),
        formula="as `fid`, of the first 64 features of Inception",
        error="as shares of images, each of which is taken out on both sides",
        least=65,
        source=HEUSEL,
    ),
)
