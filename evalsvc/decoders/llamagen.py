"""LlamaGen's VQ-16 and VQ-8, a VQGAN whose codebook lies on the unit sphere; Janus uses VQ-16.

Source: Sun, Jiang, Chen, Zhang, Peng, Luo, Yuan, "Autoregressive Model Beats Diffusion: Llama for Scalable Image
Generation" (arXiv 2406.06525), section 2.1; sizes and parameter names: `tokenizer/tokenizer_image/vq_model.py` in
FoundationVision/LlamaGen. Hugging Face's names are those of transformers' `JanusVQVAE`.

Both entries and latents are scaled to length 1 before the nearest entry is searched, as LlamaGen does. transformers
scales entries only where it decodes, so its codes are the same if and only if the file's entries have length 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from evalsvc.decoders.blocks import Codebook, VQAutoencoder
from evalsvc.decoders.config import LLAMAGEN_TARGET, HuggingFaceVQConfig, Side, part_of, validated
from evalsvc.errors import InvalidModelConfig

JANUS = "janus"
"""`model_type` of a whole model; `janus_vqgan` is that of the image tokenizer alone."""
AUTHORS_JANUS = "multi_modality"
"""`model_type` of a whole model of Janus' authors, whose image tokenizer has no other fields than a name."""
CODES_PER_SIDE = 24  # of the authors' images

NAMES = (
    (r"^encoder\.down\.", "encoder.conv_blocks."),
    (r"^decoder\.up\.", "decoder.conv_blocks."),
    (r"\.block\.", ".res."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
)
"""From transformers' names to LlamaGen's. Both count the decoder's levels from the lowest resolution."""


class JanusVQConfig(HuggingFaceVQConfig):
    embed_dim: int = 8
    num_embeddings: int = 16_384
    num_patches: Annotated[int, Field(gt=0, le=2**10)] = 32
    """Codes along each side of an image."""


class JanusVisionConfig(BaseModel):
    """Fields of a whole model from which transformers computes `num_patches`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_size: Side | tuple[Side, Side] = 384
    patch_size: Side | tuple[Side, Side] = 16

    @property
    def num_patches(self) -> int:
        image, patch = (size if isinstance(size, int) else size[0] for size in (self.image_size, self.patch_size))
        return max(1, image // patch)


class UnitCodebook(Codebook):
    def scaled(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1)


class LlamaGen(VQAutoencoder):
    targets = (LLAMAGEN_TARGET, JANUS, "janus_vqgan", AUTHORS_JANUS)
    telltale = "decoder.conv_blocks.0.res.0.conv1.weight"
    prefixes = ("vqmodel.", "gen_vision_model.")  # of Janus, by transformers and by its authors
    extras = ("quantize.codebook_used",)  # counts of training
    codebook = UnitCodebook
    renamed = NAMES

    @classmethod
    def from_config(cls, content: Mapping[str, object]) -> Self:
        if content.get("model_type") == AUTHORS_JANUS:
            if part_of(content, "gen_vision_config").get("cls") != "VQ-16":
                raise InvalidModelConfig("gen_vision_config.cls is not 'VQ-16', Janus' image tokenizer; correct it")
            content = JanusVQConfig.parse({"num_patches": CODES_PER_SIDE}).model_dump()
        if "ddconfig" not in content:
            config = JanusVQConfig.parse(content)
            patches = config.num_patches
            if content.get("model_type") == JANUS:
                vision = validated(JanusVisionConfig, "vision_config", part_of(content, "vision_config"))
                patches = vision.num_patches
            content = config.to_authors(patches << len(config.channel_multiplier) - 1, (patches,))
        return super().from_config(content)

    def file_name(self, name: str) -> str:
        last = len(self.config.ddconfig.widths) - 1
        return self.authors_name(
            re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.up.{last - int(level[1])}", name)
        )
