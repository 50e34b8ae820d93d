"""diffusers' VQModel with a MoVQGAN's weights: the same function, written by others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusers import VQModel
from torch import Tensor

RENAMED = (
    (r"\bdown\.(\d)", r"down_blocks.\1"),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\bmid\.block_1", "mid_block.resnets.0"),
    (r"\bmid\.block_2", "mid_block.resnets.1"),
    (r"\bmid\.attn_1", "mid_block.attentions.0"),
    (r"(down|up)sample\.conv", r"\1samplers.0.conv"),
    (r"^(encoder\..*attentions\.\d)\.norm\b", r"\1.group_norm"),
    (r"^(decoder\..*attentions\.\d)\.norm\b", r"\1.spatial_norm"),
    (r"(attentions\.\d)\.([qkv])\b", r"\1.to_\2"),
    (r"proj_out", "to_out.0"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"^(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
)


def build_vq_model(config: Mapping[str, Any], states: Mapping[str, Tensor]) -> VQModel:
    """For a network with attention at its lowest level; `states` are under the authors' names."""
    network = config["ddconfig"]
    levels = len(network["ch_mult"])
    model = VQModel(
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        block_out_channels=[network["ch"] * factor for factor in network["ch_mult"]],
        layers_per_block=network["num_res_blocks"],
        latent_channels=network["z_channels"],
        vq_embed_dim=config["embed_dim"],
        num_vq_embeddings=config["n_embed"],
        norm_type="spatial",
        sample_size=32,
    )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    named = {_renamed(name, levels): tensor for name, tensor in states.items()}
    model.load_state_dict({name: tensor.reshape(shapes[name]).contiguous() for name, tensor in named.items()})
    return model.requires_grad_(False).eval()


def _renamed(name: str, levels: int) -> str:
    # Theirs are listed from the lowest resolution.
    name = re.sub(r"\bup\.(\d)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
