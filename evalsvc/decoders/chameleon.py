"""Chameleon's image tokenizer, a VQGAN of taming-transformers without attention between blocks; Liquid uses it.

Source: Chameleon Team, "Chameleon: Mixed-Modal Early-Fusion Foundation Models" (arXiv 2405.09818), section 2.1, and
facebookresearch/chameleon, whose `vqgan.ckpt` and `vqgan.yaml` have the names of taming-transformers and load as kind
`vqgan` or `chameleon`: the network is the same. This kind also reads Hugging Face's folders, with the names of
transformers' `ChameleonVQVAE`. transformers has no decoder for it and its conversion leaves the decoder's tensors out,
so folders made by that conversion are refused; other conversions keep the tensors, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from evalsvc.decoders.config import CHAMELEON_TARGET
from evalsvc.decoders.hugging_face import HuggingFaceVQConfig, Side
from evalsvc.decoders.vqgan import VQGAN


class ChameleonVQConfig(HuggingFaceVQConfig):
    embed_dim: int = 256
    num_embeddings: int = 8_192
    resolution: Side = 512
    attn_resolutions: tuple[int, ...] | None = None


class Chameleon(VQGAN):
    targets = (CHAMELEON_TARGET, "chameleon", "chameleon_vqgan")
    telltale = ""  # the names are those of any VQGAN
    prefixes = ("vqmodel.",)

    @classmethod
    def from_config(cls, content: Mapping[str, object]) -> Self:
        if "ddconfig" not in content:
            config = ChameleonVQConfig.parse(content)
            content = config.to_authors(config.resolution, config.attn_resolutions or ())
        return super().from_config(content)
