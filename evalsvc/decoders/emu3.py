"""Emu3's image tokenizer: MoVQGAN's network with layers in time, for which an image is a video that stands still.

Source: Wang et al., "Emu3: Next-Token Prediction is All You Need" (arXiv 2409.18869); parameter names: `emu3/tokenizer`
in baaivision/Emu3. Hugging Face's names are those of transformers' `Emu3VQVAE`.

A layer in time reads a frame and the frames before it. The first of the frames that one map of latents stands for
therefore depends on nothing but that map. The authors decode four frames and keep the first one; only the first one is
computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.decoders.blocks import Decoder, Encoder, Norm
from evalsvc.decoders.config import AUTHORS, AutoencoderConfig, HuggingFaceVQConfig, part_of
from evalsvc.decoders.movqgan import MoVQGAN

NAMES = (
    (r"\.middle_block\.", ".mid."),
    (r"\.(down|up)_block\.\1\.", r".\1."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.attn_norm\.", ".attn_1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)
"""From transformers' names to the authors'."""

CODES_PER_SIDE = 90  # of the square images of Emu3-Gen, which has no nominal resolution
Frames = Literal[1, 2, 4, 8, 16]


class Emu3Config(AutoencoderConfig):
    temporal_downsample_factor: Frames = 4
    """Number of frames of a video per map of latents."""

    @model_validator(mode="after")
    def _check(self) -> Emu3Config:
        if self.embed_dim != self.ddconfig.z_channels:
            raise ValueError(f"embed_dim {self.embed_dim} is not z_channels {self.ddconfig.z_channels}")
        return self

    @property
    def halvings(self) -> int:
        """Number of layers that halve or double the number of frames."""
        return self.temporal_downsample_factor.bit_length() - 1


class Emu3VQConfig(HuggingFaceVQConfig):
    """Fields of transformers' `Emu3VQVAEConfig`; the authors' `config.json` has most of them by other names."""

    embed_dim: int = 4
    num_embeddings: int = Field(default=32_768, alias="codebook_size")
    latent_channels: int = 4
    base_channels: int = 256
    channel_multiplier: tuple[int, ...] = Field(default=(1, 2, 2, 4), min_length=1, max_length=10)
    attn_resolutions: tuple[Annotated[int, Field(ge=0, le=10)], ...] = Field(default=(3,), max_length=10)
    """Levels with attention, counted from the highest resolution."""
    num_attention_heads: Literal[1] = 1
    temporal_downsample_factor: Frames = 4


class CausalConv(nn.Module):
    """Convolution of maps [B, C, T, h, w] which reads no later frame, in steps of `stride` frames."""

    def __init__(self, channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(channels, out_channels, kernel, (stride, 1, 1), padding)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.pad(x, (0, 0, 0, 0, 2, 0))))


class TimeResample(nn.Module):
    def __init__(self, channels: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.conv(x))


class BatchNorm(nn.Module):
    """nn.BatchNorm3d without its counter of batches, which is no floating-point tensor."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


class TimeBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = BatchNorm(channels), BatchNorm(channels)
        self.conv1, self.conv2 = (CausalConv(channels, channels, (3, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(x)))
        return cast(Tensor, x + self.conv2(functional.silu(self.norm2(inner))))


def time_blocks(config: Emu3Config) -> nn.Sequential:
    return nn.Sequential(*(TimeBlock(config.ddconfig.z_channels) for _ in range(config.ddconfig.num_res_blocks)))


class TimeEncoder(Encoder):
    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config.ddconfig)
        self.frames, channels = config.temporal_downsample_factor, config.ddconfig.z_channels
        self.time_conv = nn.ModuleList(TimeResample(channels, (4, 3, 3), 2) for _ in range(config.halvings))
        self.time_res_stack = time_blocks(config)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] → [B, z_channels, 1, h, w]
        video = super().forward(images)[:, :, None].expand(-1, -1, self.frames, -1, -1)
        for layer in self.time_conv:
            video = layer(video)
        return cast(Tensor, self.time_res_stack(video))


class TimeDecoder(Decoder):
    def __init__(self, config: Emu3Config, norm: Norm) -> None:
        super().__init__(config.ddconfig, norm)
        channels = config.ddconfig.z_channels
        self.time_res_stack = time_blocks(config)
        self.time_conv = nn.ModuleList(TimeResample(channels, (3, 3, 3)) for _ in range(config.halvings))

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:  # [B, z_channels, h, w] → [B, 3, H, W]
        both = self.time_res_stack(torch.cat((x, latent))[:, :, None])
        for layer in self.time_conv:
            both = layer(both)  # doubling the frames would add later frames only
        x, latent = both[:, :, 0].chunk(2)
        return super().forward(x, latent)


class Emu3(MoVQGAN):
    targets = ("Emu3VisionVQ", "emu3_vqgan", "emu3")  # the authors' folder, and transformers', alone and in a model
    telltale = "decoder.time_conv.0.conv.conv.weight"
    prefixes = ("vqmodel.",)
    renamed = NAMES

    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config)
        channels = config.embed_dim
        self.encoder = TimeEncoder(config)
        self.decoder = TimeDecoder(config, self.decoder_norm(config))
        self.quant_conv, self.post_quant_conv = (CausalConv(channels, channels, (3, 1, 1)) for _ in range(2))

    @classmethod
    def from_config(cls, content: Mapping[str, object]) -> Self:
        if "ddconfig" not in content:
            fields = part_of(content, "vq_config") if "vq_config" in content else content
            config = Emu3VQConfig.parse({AUTHORS.get(name, name): value for name, value in fields.items()})
            resolution = CODES_PER_SIDE << len(config.channel_multiplier) - 1
            content = config.to_authors(resolution, tuple(resolution >> level for level in config.attn_resolutions))
            content |= {"temporal_downsample_factor": config.temporal_downsample_factor}
        return cls(Emu3Config.parse(content))

    def latents(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.quant_conv(self.encoder(images))[:, :, 0])

    def render(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(self.post_quant_conv(latents[:, :, None])[:, :, 0], latents))
