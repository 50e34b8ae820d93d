"""Hugging Face's configurations of VQGANs, as the `ddconfig` of taming-transformers.

The fields and their defaults are those of transformers' `JanusVQVAEConfig` and `ChameleonVQVAEConfig`, because a saved
`config.json` leaves out fields that have the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.decoders.config import validated
from evalsvc.errors import InvalidModelConfig

Side = Annotated[int, Field(gt=0, le=2**14)]
"""Number of pixels or patches along one side. The bound keeps products of such numbers small."""


def part_of(content: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a part of a `config.json`, empty if missing or null. Raises InvalidModelConfig if it has no fields."""
    part = content.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise InvalidModelConfig(f"{name} is a {type(part).__name__}; give the fields of the image tokenizer by name")
    return part or {}


class HuggingFaceVQConfig(BaseModel):
    """Fields that Janus and Chameleon share. `NetworkConfig` checks the values, except those computed with here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    embed_dim: int
    num_embeddings: int
    double_latent: bool = False
    latent_channels: int = 256
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1, max_length=10)
    num_res_blocks: int = 2
    dropout: float = 0.0
    attn_type: str | None = "vanilla"

    @classmethod
    def parse(cls, content: Mapping[str, object]) -> Self:
        """Parse a `config.json` of the image tokenizer, or of a whole model with the tokenizer's under `vq_config`.

        Raises InvalidModelConfig.
        """
        fields = part_of(content, "vq_config") if "vq_config" in content else content
        return validated(cls, "decoder configuration", fields)

    def to_authors(self, resolution: int, attn_resolutions: tuple[int, ...]) -> dict[str, object]:
        """Return the configuration in the authors' form."""
        return {
            "embed_dim": self.embed_dim,
            "n_embed": self.num_embeddings,
            "ddconfig": {
                "double_z": self.double_latent,
                "z_channels": self.latent_channels,
                "in_channels": self.in_channels,
                "out_ch": self.out_channels,
                "ch": self.base_channels,
                "ch_mult": self.channel_multiplier,
                "num_res_blocks": self.num_res_blocks,
                "dropout": self.dropout,
                "attn_type": self.attn_type,
                "resolution": resolution,
                "attn_resolutions": attn_resolutions,
            },
        }
