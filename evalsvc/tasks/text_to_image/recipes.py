"""Published recipes for image metrics on COCO, as data: `protocol: llamagen-coco` in a suite fixes the fields below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalsvc.assets import ASSETS
from evalsvc.errors import UnknownName

PROMPTS = 30_000
VAL2014 = 40_504
"""Images of COCO's val2014."""


@dataclass(frozen=True)
class ImageProtocol:
    """One published recipe."""

    name: str
    about: str
    source: str
    """Where its code is."""
    fields: Mapping[str, Any]
    """Parameters of `text_to_image` that it fixes."""
    captions: str | None = None
    """`CaptionData.digest` of its own list of prompts; None: any 30,000 of val2014's captions."""

    def deviations(self, captions: str, *, prompts: int, reference: int | None, extractor: str) -> Iterator[str]:
        """Why a FID measured with these fields is not what the recipe calls its FID-30K; nothing: it is.

        `captions` and `extractor` are digests, `prompts` and `reference` numbers of sampled and of real images.
        """
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
"""What the scripts that descend from GigaGAN's have in common, with clean-fid in its mode `clean`."""

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
    """The recipe of this name. Raises UnknownName, with near misses."""
    if name not in PROTOCOLS:
        raise UnknownName.among("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
