"""VQGAN, MoVQGAN, LlamaGen's VQ and Emu3's written down once more as plainly as possible: functions over a state dict.
Nothing is fused, commuted or batched for speed: the latent is upsampled before the 1x1 convolutions of the spatial
norm, attention is two matrix products, the codebook is searched with all distances written out, an image of Emu3 is a
video."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]


def conv(p: Tensors, name: str, x: Tensor, **options: Any) -> Tensor:
    return functional.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)


def group_norm(p: Tensors, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)


def norm(p: Tensors, name: str, x: Tensor, latent: Tensor | None) -> Tensor:
    if f"{name}.conv_y.weight" not in p:
        return group_norm(p, name, x)
    assert latent is not None
    large = functional.interpolate(latent, size=x.shape[2:], mode="nearest")
    if f"{name}.conv.weight" in p:
        large = conv(p, f"{name}.conv", large, padding=1)
    return group_norm(p, f"{name}.norm_layer", x) * conv(p, f"{name}.conv_y", large) + conv(p, f"{name}.conv_b", large)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def resnet(p: Tensors, name: str, x: Tensor, latent: Tensor | None) -> Tensor:
    h = conv(p, f"{name}.conv1", swish(norm(p, f"{name}.norm1", x, latent)), padding=1)
    h = conv(p, f"{name}.conv2", swish(norm(p, f"{name}.norm2", h, latent)), padding=1)
    skip = conv(p, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in p else x
    return skip + h


def attention(p: Tensors, name: str, x: Tensor, latent: Tensor | None) -> Tensor:
    h = norm(p, f"{name}.norm", x, latent)
    q, k, v = (conv(p, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(dim=2)  # [B, queries, keys]
    return x + conv(p, f"{name}.proj_out", (v @ weights.transpose(1, 2)).view(x.shape))


def blocks(p: Tensors, name: str, x: Tensor, latent: Tensor | None) -> Tensor:
    number = 0
    while f"{name}.block.{number}.conv1.weight" in p:
        x = resnet(p, f"{name}.block.{number}", x, latent)
        if f"{name}.attn.{number}.q.weight" in p:
            x = attention(p, f"{name}.attn.{number}", x, latent)
        number += 1
    return x


def middle(p: Tensors, name: str, x: Tensor, latent: Tensor | None) -> Tensor:
    x = resnet(p, f"{name}.mid.block_1", x, latent)
    x = attention(p, f"{name}.mid.attn_1", x, latent)
    return resnet(p, f"{name}.mid.block_2", x, latent)


def levels(p: Tensors, name: str) -> int:
    return len({key.split(".")[2] for key in p if key.startswith(f"{name}.")})


def to_unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()


def in_time(p: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:  # [B, C, T, h, w]
    """A convolution behind two empty frames; with latents [B, C, h, w], one of single positions in a 2-D network."""
    if f"{name}.conv.weight" not in p:
        return conv(p, name, x)
    weight, video = p[f"{name}.conv.weight"], x if x.dim() == 5 else x[:, :, None]
    side = weight.shape[-1] // 2
    padded = functional.pad(video, (side, side, side, side, 2, 0))
    out = functional.conv3d(padded, weight, p[f"{name}.conv.bias"], stride=(stride, 1, 1))
    return out if x.dim() == 5 else out[:, :, 0]


def batch_norm(p: Tensors, name: str, x: Tensor) -> Tensor:
    mean, variance, gain, bias = (
        p[f"{name}.{part}"].view(-1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gain + bias


def time_blocks(p: Tensors, name: str, x: Tensor) -> Tensor:
    number = 0
    while f"{name}.{number}.conv1.conv.weight" in p:
        h = in_time(p, f"{name}.{number}.conv1", swish(batch_norm(p, f"{name}.{number}.norm1", x)))
        x = x + in_time(p, f"{name}.{number}.conv2", swish(batch_norm(p, f"{name}.{number}.norm2", h)))
        number += 1
    return x


def encode(p: Tensors, images: Tensor, unit: bool = False) -> tuple[Tensor, Tensor]:
    """Latents [B, C, h, w] and codes [B, h * w]; with `unit`, of entries and latents of length 1."""
    x, depth = conv(p, "encoder.conv_in", images, padding=1), levels(p, "encoder.down")
    for level in range(depth):
        x = blocks(p, f"encoder.down.{level}", x, None)
        if f"encoder.down.{level}.downsample.conv.weight" in p:
            x = conv(p, f"encoder.down.{level}.downsample.conv", functional.pad(x, (0, 1, 0, 1)), stride=2)
        elif level < depth - 1:
            x = functional.avg_pool2d(x, 2)
    x = swish(norm(p, "encoder.norm_out", middle(p, "encoder", x, None), None))
    x = conv(p, "encoder.conv_out", x, padding=1)
    if "encoder.time_conv.0.conv.conv.weight" in p:
        video = x[:, :, None].repeat(1, 1, 4, 1, 1)
        for number in range(2):
            video = swish(in_time(p, f"encoder.time_conv.{number}.conv", video, stride=2))
        x = time_blocks(p, "encoder.time_res_stack", video)[:, :, 0]
    latents = in_time(p, "quant_conv", x)
    points, entries = latents.permute(0, 2, 3, 1), p["quantize.embedding.weight"]
    if unit:
        points, entries = to_unit(points), to_unit(entries)
    distances = (points[..., None, :] - entries).square().sum(dim=-1)  # [B, h, w, n]
    return latents, distances.argmin(dim=-1).flatten(1)


def decode(p: Tensors, codes: Tensor, height: int, width: int, unit: bool = False) -> Tensor:
    entries = p["quantize.embedding.weight"]
    entries = to_unit(entries) if unit else entries
    latent = entries[codes].view(-1, height, width, entries.shape[1]).permute(0, 3, 1, 2)
    x = in_time(p, "post_quant_conv", latent)
    if "decoder.time_conv.0.conv.conv.weight" in p:  # four frames of both, the last three for nothing
        x, latent = (time_blocks(p, "decoder.time_res_stack", maps[:, :, None]) for maps in (x, latent))
        for number in range(2):
            name = f"decoder.time_conv.{number}.conv"
            x, latent = (swish(in_time(p, name, maps.repeat_interleave(2, dim=2))) for maps in (x, latent))
        x, latent = x[:, :, 0], latent[:, :, 0]
    x = middle(p, "decoder", conv(p, "decoder.conv_in", x, padding=1), latent)
    for level in reversed(range(levels(p, "decoder.up"))):
        x = blocks(p, f"decoder.up.{level}", x, latent)
        if level > 0:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if f"decoder.up.{level}.upsample.conv.weight" in p:
            x = conv(p, f"decoder.up.{level}.upsample.conv", x, padding=1)
    return conv(p, "decoder.conv_out", swish(norm(p, "decoder.norm_out", x, latent)), padding=1)
