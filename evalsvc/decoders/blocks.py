"""The convolutional auto-encoder of VQGAN and its descendants, with the authors' parameter names.

Source: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841), and the
layout of taming-transformers' checkpoints. A norm takes a second argument, the quantised latent that modulates
MoVQGAN's decoder. Without gradients, upsampling (`folding`) computes the same function in a faster way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.decoders import folding
from evalsvc.decoders.config import GROUPS, AutoencoderConfig, NetworkConfig
from evalsvc.decoders.decoder import ImageDecoder
from evalsvc.precision import TF32Conv2d

NORM_EPS = 1e-6
CHUNK_BYTES = 64 << 20  # of distances to the codebook in memory, approximately
PIXELS_PER_BATCH_CPU = 256**2
PIXELS_PER_BATCH = 16 * 256**2

Norm = Callable[[int], nn.Module]
"""Function that makes a norm for a number of channels; the norm takes x [B, C, H, W] and the latent [B, c, h, w]."""


@dataclass(frozen=True)
class Size:
    """Size of a batch of maps."""

    images: int
    height: int
    width: int
    itemsize: int

    @property
    def bytes_per_channel(self) -> int:
        return self.images * self.height * self.width * self.itemsize


class GroupNorm(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=NORM_EPS)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        return super().forward(x)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, latent: Tensor | None) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(x, latent), inplace=True))
        inner = functional.silu(self.norm2(inner, latent), inplace=True)  # reuse the name, which frees the map before
        inner = self.conv2(self.dropout(inner))
        skip = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return cast(Tensor, inner.add_(skip))

    def peak_bytes(self, size: Size) -> int:
        """Return the bytes, input included, while the first or the second convolution runs.

        oneDNN reorders the weights of a convolution into a copy.
        """
        before, after = (size.bytes_per_channel * width for width in (self.conv1.in_channels, self.conv1.out_channels))
        return max(2 * before + after + self.conv1.weight.nbytes, before + 2 * after + self.conv2.weight.nbytes)


class AttentionBlock(nn.Module):
    """Attention of every position to every other, with one head as wide as the map."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, latent: Tensor | None) -> Tensor:
        normed = self.norm(x, latent)
        queries, keys, values = (
            project(normed).flatten(2).transpose(1, 2)[:, None]  # [B, 1, H * W, C]
            for project in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return cast(Tensor, x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(x.shape)))


class Downsample(nn.Module):
    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return functional.avg_pool2d(x, 2)
        padded = functional.pad(x, (0, 1, 0, 1))  # right and below only
        return cast(Tensor, self.conv(padded))


class Upsample(nn.Module):
    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None and self.conv.bias is not None and folding.pays(x, self.conv):
            return folding.upsample_and_convolve(x, self.conv.weight, self.conv.bias)
        large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return large if self.conv is None else self.conv(large)

    def peak_bytes(self, size: Size) -> int:
        """Return the bytes with the input, of `size`, and the level's input, which the callers hold."""
        if self.conv is None:
            return 0
        channels = self.conv.in_channels
        if size.itemsize < 4 or isinstance(self.conv, TF32Conv2d):
            # The upsampled map and the output have four times the pixels.
            return 10 * size.bytes_per_channel * channels + self.conv.weight.nbytes
        workspace = folding.workspace(channels, channels, size.height, size.width, size.itemsize)
        return 6 * size.bytes_per_channel * channels + workspace


class Level(nn.Module):
    """Blocks of one resolution, the first of which changes the width, with optional attention after each block."""

    def __init__(self, config: NetworkConfig, index: int, channels: int, depth: int, norm: Norm) -> None:
        super().__init__()
        width, dropout = config.widths[index], config.dropout
        self.block = nn.ModuleList(
            ResnetBlock(width if number else channels, width, norm, dropout) for number in range(depth)
        )
        self.attn = nn.ModuleList(AttentionBlock(width, norm) for _ in range(depth) if config.attends[index])

    def forward(self, x: Tensor, latent: Tensor | None) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x, latent)
            if self.attn:
                x = self.attn[number](x, latent)
        return x


class DownLevel(Level):
    def __init__(self, config: NetworkConfig, index: int) -> None:
        widths = config.widths
        super().__init__(config, index, widths[index - 1] if index else config.ch, config.num_res_blocks, GroupNorm)
        if index < len(widths) - 1:
            self.downsample = Downsample(widths[index], config.resamp_with_conv)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        x = super().forward(x, latent)
        return self.downsample(x) if hasattr(self, "downsample") else x


class UpLevel(Level):
    def __init__(self, config: NetworkConfig, index: int, norm: Norm) -> None:
        widths = config.widths
        super().__init__(config, index, [*widths, widths[-1]][index + 1], config.num_res_blocks + 1, norm)
        if index > 0:
            self.upsample = Upsample(widths[index], config.resamp_with_conv)

    def forward(self, x: Tensor, latent: Tensor | None) -> Tensor:
        x = super().forward(x, latent)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, width: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, norm, dropout)
        self.attn_1 = AttentionBlock(width, norm)
        self.block_2 = ResnetBlock(width, width, norm, dropout)

    def forward(self, x: Tensor, latent: Tensor | None) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x, latent), latent), latent))


class Encoder(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(config, index) for index in range(len(config.widths)))
        self.mid = Middle(width, GroupNorm, config.dropout)
        self.norm_out = GroupNorm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] → [B, z_channels, h, w]
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return cast(Tensor, self.conv_out(functional.silu(self.norm_out(self.mid(x, None)), inplace=True)))


class Decoder(nn.Module):
    def __init__(self, config: NetworkConfig, norm: Norm) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], norm, config.dropout)
        # Indexed by level as in the encoder; the forward pass goes from the last level to the first.
        self.up = nn.ModuleList(UpLevel(config, index, norm) for index in range(len(widths)))
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:  # [B, z_channels, h, w] → [B, 3, H, W]
        x = self.mid(self.conv_in(x), latent)
        for level in reversed(self.up):
            x = level(x, latent)
        return cast(Tensor, self.conv_out(functional.silu(self.norm_out(x, latent), inplace=True)))

    def peak_bytes(self, images: int, grid: tuple[int, int], itemsize: int) -> int:
        """Return the largest sum of bytes of maps, workspaces and transformed weights at any time."""
        size = Size(images, *grid, itemsize)
        peaks: list[int] = []
        for part in (self.mid, *reversed(self.up)):
            peaks += [inner.peak_bytes(size) for inner in part.modules() if isinstance(inner, (ResnetBlock, Upsample))]
            if hasattr(part, "upsample"):
                size = replace(size, height=2 * size.height, width=2 * size.width)
        return max(peaks)


class Codebook(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        # As the authors do: entries are far closer to zero than latents, so that training can move any entry.
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def scaled(self, vectors: Tensor) -> Tensor:  # [..., C] → [..., C]
        """Return entries or latents as they are compared and decoded."""
        return vectors

    def nearest(self, latents: Tensor) -> Tensor:  # [B, C, h, w] → [B, h * w] int64
        """Return the codebook entry with the smallest squared distance, the first of equal ones."""
        entries = self.scaled(self.embedding.weight.detach())
        points = self.scaled(latents.detach().movedim(1, -1).reshape(-1, entries.shape[1]))
        # |z - e|² less |z|², which does not depend on e.
        squares = entries.square().sum(1)
        rows = max(1, CHUNK_BYTES // (entries.element_size() * len(entries)))
        codes = [torch.addmm(squares, part, entries.T, alpha=-2).argmin(1) for part in torch.split(points, rows)]
        return torch.cat(codes).view(len(latents), latents.shape[2:].numel())

    def lookup(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, C, h, w], channels last in memory
        entries = self.scaled(self.embedding(codes))
        return entries.view(len(codes), *grid, entries.shape[-1]).movedim(-1, 1)


class VQAutoencoder(ImageDecoder):
    """Encoder, codebook and decoder; a subclass defines the decoder's norm and the codebook."""

    codebook: ClassVar[type[Codebook]] = Codebook

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        network = config.ddconfig
        self.config = config
        self.codebook_size = config.n_embed
        self.downsampling = network.downsampling
        self.resolution = network.resolution
        self.encoder = Encoder(network)
        self.quant_conv: nn.Module = nn.Conv2d(network.z_channels, config.embed_dim, 1)
        self.quantize = self.codebook(config.n_embed, config.embed_dim)
        self.post_quant_conv: nn.Module = nn.Conv2d(config.embed_dim, network.z_channels, 1)
        self.decoder = Decoder(network, self.decoder_norm(config))

    @staticmethod
    def decoder_norm(config: AutoencoderConfig) -> Norm:
        return GroupNorm

    @classmethod
    def from_config(cls, content: Mapping[str, object]) -> Self:
        return cls(AutoencoderConfig.parse(content))

    def latents(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.quant_conv(self.encoder(images)))

    def nearest(self, latents: Tensor) -> Tensor:
        return self.quantize.nearest(latents)

    def lookup(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.quantize.lookup(codes, grid)

    def images_at_once(self, grid: tuple[int, int]) -> int:
        """Return the number of images per call: on a CPU, a batch of large images is no faster than single images."""
        pixels = grid[0] * grid[1] * self.downsampling**2
        most = PIXELS_PER_BATCH if self._like.device.type == "cuda" else PIXELS_PER_BATCH_CPU
        return max(1, most // max(1, pixels))

    def decode_bytes(self, grid: tuple[int, int]) -> int:
        return self.decoder.peak_bytes(self.images_at_once(grid), grid, self._like.element_size())

    def render(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(self.post_quant_conv(latents), latents))
