"""VQGAN in the format of taming-transformers, and Chameleon's image tokenizer, which is one; Liquid uses it.

VQGAN: Esser, Rombach, Ommer (arXiv 2012.09841). The variant with a Gumbel quantiser has another codebook and is not
supported.

Chameleon's has no attention between blocks: Chameleon Team, "Chameleon: Mixed-Modal Early-Fusion Foundation Models"
(arXiv 2405.09818), section 2.1. The `vqgan.ckpt` and `vqgan.yaml` of facebookresearch/chameleon have the names of
taming-transformers and load as either kind. The kind `chameleon` also reads Hugging Face's folders, with the names of
transformers' `ChameleonVQVAE`. transformers has no decoder for it and its conversion leaves the decoder's tensors out,
so folders made by that conversion are refused; other conversions keep the tensors, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from evalsvc.decoders.blocks import VQAutoencoder
from evalsvc.decoders.config import CHAMELEON_TARGET, HuggingFaceVQConfig, Side


class VQGAN(VQAutoencoder):
    targets: ClassVar[tuple[str, ...]] = ("taming.models.vqgan.VQModel",)
    telltale = "decoder.norm_out.weight"


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
