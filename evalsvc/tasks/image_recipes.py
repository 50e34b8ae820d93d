"""Published recipes for image metrics, as data: `protocol: llamagen-coco` in a suite sets the fields below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalsvc.assets import ASSETS
from evalsvc.errors import UnknownName

PROMPTS = 30_000
VAL2014 = 40_504


@dataclass(frozen=True)
class ImageProtocol:
    name: str
    about: str
    source: str
    fields: Mapping[str, Any]
    captions: str | None = None
    """`CaptionData.digest` of the recipe's own list of prompts; None: any list."""
    real: int | None = VAL2014
    """Number of real images; None: moments that a file states, which does not say of how many images."""

    @property
    def called(self) -> str:
        """Name of the recipe's FID, as in FID-30K."""
        return f"FID-{self.fields['samples'] // 1000}K"

    def deviations(self, captions: str, *, prompts: int, reference: int | None, extractor: str) -> Iterator[str]:
        """Yield reasons why a FID is not the recipe's. `captions` and `extractor` are digests; `prompts` and
        `reference` are the numbers of sampled images and of real ones, None for moments that a file states."""
        if prompts != self.fields["samples"]:
            yield f"{prompts:,} images instead of {self.fields['samples']:,}"
        if self.captions not in (None, captions):
            yield "prompts of another list"
        if reference != self.real:
            number, due = ("an unknown number of" if n is None else f"{n:,}" for n in (reference, self.real))
            yield f"{number} real images, not {due}" if self.real else f"moments of {number} real images, not a file's"
        if extractor != ASSETS["inception"].tensors:
            yield "another network than the asset inception"


GIGAGAN: Mapping[str, Any] = {
    "reference_of": "all",
    "crop": "center-torchvision",
    "reference_crop": "center-torchvision",
    "reference_filter": "lanczos",
    "reference_size": 256,
    "resize": "pil-bicubic",
}
"""Common fields of the scripts that descend from GigaGAN's, with clean-fid in its mode `clean`."""

ADM = ("fid", "sfid", "inception_score_adm", "precision_k3", "recall_k3")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ImageProtocol(
            "llamagen-coco",
            "LlamaGen's text-to-image evaluation: its list of 30,000 prompts, guidance 7.5, top-k 1,000, bfloat16",
            "FoundationVision/LlamaGen, evaluations/t2i/evaluation.py",
            {
                **GIGAGAN,
                "filter": "lanczos",
                "samples": PROMPTS,
                "select": "first",
                "guidance_scale": 7.5,
                "temperature": 1.0,
                "top_k": 1000,
                "top_p": None,
                "seed": 0,
                "dtype": "bfloat16",
            },
            captions="79540f6d022048b9b81b0f8b6f5fe8e2ce3ce253026dc0dd870633dd62313b05",
        ),
        ImageProtocol(
            "gigagan-coco",
            "GigaGAN's script on 30,000 prompts of val2014; sampling is free",
            "mingukkang/GigaGAN, evaluation; the same code in LlamaGen and PixArt",
            {**GIGAGAN, "filter": "lanczos", "samples": PROMPTS},
        ),
        ImageProtocol(
            "janus-coco",
            "GigaGAN's script on images of 384 pixels that were brought to 256 by a bicubic filter, as Janus's authors "
            "say; sampling is free",
            "deepseek-ai/Janus, issue 22",
            {**GIGAGAN, "size": 384, "filter": "bicubic", "samples": PROMPTS},
        ),
        ImageProtocol(
            "mjhq-30k",
            "MJHQ-30K: images of 1,024 pixels of its 30,000 prompts against its images by clean-fid, also by category",
            "huggingface.co/datasets/playgroundai/MJHQ-30K",
            {
                "reference_crop": "none",
                "reference_size": 1024,
                "resize": "pil-bicubic",
                "by_category": True,
                "samples": PROMPTS,
            },
            real=PROMPTS,
        ),
        ImageProtocol(
            "adm-imagenet-50k",
            "ADM's evaluator on 50,000 images: FID and sFID to the moments of a file such as "
            "VIRTUAL_imagenet256_labeled.npz, precision and recall against the file's images, Inception Score",
            "openai/guided-diffusion, evaluations/evaluator.py",
            {"reference_of": "all", "resize": "tf1-bilinear", "samples": 50_000, "metrics": ADM},
            real=None,
        ),
    )
}


def find_protocol(name: str) -> ImageProtocol:
    if name not in PROTOCOLS:
        raise UnknownName.among("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
