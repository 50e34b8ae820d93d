"""Image decoders of every kind, small and with random weights that leave no parameter without effect."""

from typing import Any, TypeVar

import torch
from torch import nn

from evalsvc.decoders import ImageDecoder
from evalsvc.spec import catalog

Network = TypeVar("Network", bound=nn.Module)


def tiny_config(kind: str, **changes: Any) -> dict[str, Any]:
    """Three levels with a wider and a narrower one, attention at two of them, 16 codes of 3 numbers, f = 4."""
    ddconfig: dict[str, Any] = {"double_z": False, "z_channels": 5, "resolution": 32, "in_channels": 3, "out_ch": 3}
    ddconfig |= {"ch": 32, "ch_mult": [1, 2, 1], "num_res_blocks": 2, "attn_resolutions": [16, 8], "dropout": 0.0}
    ddconfig |= {"z_channels": 3} if kind == "emu3" else {}  # its latents go through the layers of its entries
    target = catalog.load("decoders", kind).targets[0]
    return {"target": target, "embed_dim": 3, "n_embed": 16, "ddconfig": ddconfig | changes}


def random_decoder(config: dict[str, Any], kind: str, seed: int = 0) -> ImageDecoder:
    decoder: ImageDecoder = catalog.load("decoders", kind).from_config(config)
    return randomise(decoder, seed).eval()


@torch.no_grad()
def randomise(decoder: Network, seed: int) -> Network:
    """Convolutions that keep the variance, norms and codebook away from their trivial start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "quantize.embedding.weight":
            parameter.copy_(0.6 * noise)
        elif parameter.dim() >= 2:
            gain = 0.5 if "conv_y" in name or "conv_b" in name else 1
            gain = 2 if parameter.dim() == 5 else gain  # an image meets one frame of three
            parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
        elif "conv_y" in name:
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
    for name, buffer in decoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            noise = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(0.1 * noise if name.endswith("mean") else 1 + 0.2 * noise.abs())
    return decoder
