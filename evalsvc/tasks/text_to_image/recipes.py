"""Published recipes for image metrics on COCO, as data: `protocol: llamagen-coco` in a suite sets the fields below."""

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
    """`CaptionData.digest` of the recipe's own list of prompts; None: any 30,000 captions of val2014."""

    def deviations(self, captions: str, *, prompts: int, reference: int | None, extractor: str) -> Iterator[str]:
        """Yield reasons why a FID is not the recipe's FID-30K. `captions` and `extractor` are digests; `prompts` and
        `reference` are the numbers of sampled and real images."""
        if prompts != PROMPTS:
            yield f"{prompts:,} prompts instead of {PROMPTS:,}"
        if self.captions not in (None, captions):
            yield "prompts of another list"
        if reference != VAL2014:
            yield f"{'an unknown number of' if reference is None else f'{reference:,}'} real images, not {VAL2014:,}"
        if extractor != ASSETS["inception"].tensors:
            yield "another network than the asset inception"


GIGAGAN: Mapping[str, Any] = {
    "reference_of": "all",
    "reference_crop": "center-torchvision",
    "reference_filter": "lanczos",
    "reference_size": 256,
    "resize": "pil-bicubic",
}
"""Common fields of the scripts that descend from GigaGAN's, with clean-fid in its mode `clean`."""

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
    )
}


def find_protocol(name: str) -> ImageProtocol:
    if name not in PROTOCOLS:
        raise UnknownName.among("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
