"""SBER-MoVQGAN: a VQGAN whose decoder is modulated by the quantised latent at every norm.

Source: Zheng, Vuong, Cai, Phung, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation"
(arXiv 2209.09002), with the configurations and parameter names of ai-forever/MoVQGAN's checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from evalsvc.decoders.blocks import GroupNorm, Norm, VQAutoencoder
from evalsvc.decoders.config import AutoencoderConfig


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted at each position by 1x1 convolutions of the latent there."""

    def __init__(self, channels: int, latent_channels: int, add_conv: bool) -> None:
        super().__init__()
        self.norm_layer = GroupNorm(channels)
        if add_conv:
            self.conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        latent: Tensor,  # [B, c, h, w]; H / h and W / w are whole
    ) -> Tensor:  # [B, C, H, W]
        if hasattr(self, "conv"):
            # This convolution reads neighbours, unlike a 1x1 convolution, so it must come after the upsampling.
            latent = self.conv(functional.interpolate(latent, size=x.shape[2:], mode="nearest"))
        scale, shift = self.conv_y(latent), self.conv_b(latent)
        normed: Tensor = self.norm_layer(x)
        # The authors upsample the latent first. A 1x1 convolution commutes with upsampling, so here the convolution
        # runs on the small map, and each of its positions is broadcast over its H / h x W / w pixels.
        height, width = latent.shape[2:]
        pixels = normed.view(*normed.shape[:2], height, normed.shape[2] // height, width, normed.shape[3] // width)
        pixels.mul_(scale[:, :, :, None, :, None]).add_(shift[:, :, :, None, :, None])
        return normed


class MoVQGAN(VQAutoencoder):
    targets: ClassVar[tuple[str, ...]] = ("movqgan.models.vqgan.MOVQ",)
    telltale = "decoder.norm_out.conv_y.weight"

    @staticmethod
    def decoder_norm(config: AutoencoderConfig) -> Norm:
        return partial(SpatialNorm, latent_channels=config.embed_dim, add_conv=config.ddconfig.add_conv)
