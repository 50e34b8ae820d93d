"""Linear products by oneDNN on a CPU.

`F.linear` in float32 is MKL's, which on the AMD processor measured reaches half of oneDNN's rate. oneDNN rearranges the
weight into a layout of its own first. For many rows that is done anew at every call and costs a tenth (`product`); for
few it would cost more than the product, and the layout is made once (`packed_linear`). Where it has none (float64, a
GPU, another build of torch) the plain product is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.model_config import ModelConfig

WeightFormat = Literal["plain", "int8"]
Linear = Callable[[Tensor], Tensor]  # [R, D] → [R, N]

PACKED_DTYPES = (torch.float32, torch.bfloat16)
LEAST_BYTES = 32 << 20
"""Weights that together take less stay in the caches, and their layout matters little."""


MANY_ROWS = 16
"""From so many on a product is worth a rearranged weight that is used once."""
SCRATCH_BYTES = 128 << 20
"""The largest weight that is rearranged for one product: as much memory is taken beside it."""


def product(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [N, D]
    bias: Tensor | None,  # [N]
) -> Tensor:  # [..., N]
    """`F.linear`, by oneDNN for many rows in float32. A row's sum is in the same order whatever the other rows."""
    if (
        weight.dtype == x.dtype == torch.float32
        and x.numel() >= MANY_ROWS * x.shape[-1]
        and weight.nbytes <= SCRATCH_BYTES
        and not torch.is_grad_enabled()
        and can_pack(x.device, x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return out
    return functional.linear(x, weight, bias)


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The product itself, which reads the weight where it is."""
    return lambda x: functional.linear(x, weight, bias)


def packed_linear(
    weight: Tensor,  # [N, D]
    bias: Tensor | None,  # [N]
    rows: int,
) -> Linear:
    """The product over a copy of `weight` in oneDNN's layout for `rows` rows; plain where it has none."""
    if not can_pack(weight.device, weight.dtype):
        return plain_linear(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        out: Tensor = multiply(x, packed, bias, "none", [], "")
        return out

    return product


def int8_linear(
    weight: Tensor,  # [N, D]
    bias: Tensor | None,  # [N]
) -> Linear:
    """The product of weights rounded to 8 bits, with a scale for each output, and inputs with a scale for each row.

    A row's scale is its own, so its neighbours do not move it. The sums are exact in 32 bits, so that oneDNN's
    product and the plain one of the same whole numbers are equal up to the final scaling.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight_scale = _scale(weight.to(wide))  # [N, 1]
    rounded = (weight.to(wide) / weight_scale).round_()
    product = _int8_product(rounded, weight_scale.squeeze(1))

    def linear(x: Tensor) -> Tensor:
        row_scale = _scale(x.to(wide))
        out = product((x.to(wide) / row_scale).round_()) * row_scale
        return (out if bias is None else out + bias.to(wide)).to(x.dtype)

    return linear


def _scale(x: Tensor) -> Tensor:  # [R, D] → [R, 1]
    return x.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127


def _int8_product(
    rounded: Tensor,  # [N, D] whole numbers, -127…127
    scale: Tensor,  # [N]
) -> Linear:
    if not (can_pack(rounded.device, rounded.dtype) and _has_int8()):
        return lambda x: functional.linear(x, rounded) * scale
    packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def product(x: Tensor) -> Tensor:
        unsigned = (x + 128).to(torch.uint8)  # the instruction multiplies unsigned by signed
        out: Tensor = multiply(unsigned, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")
        return out

    return product


@functools.cache
def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies these, with weights in its own layout and in torch's."""
    if device.type != "cpu" or dtype not in PACKED_DTYPES:
        return False
    ones = torch.ones(16, 16, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(ones, 2)
        for weight in (packed, ones):
            torch.ops.mkldnn._linear_pointwise.default(ones[:2], weight, None, "none", [], "")
    except (AttributeError, RuntimeError):  # bfloat16 on an old CPU, or a torch whose operators are others
        return False
    return True


@functools.cache
def _has_int8() -> bool:
    """Whether oneDNN's product is exact: without VNNI, the processor adds two products in 16 bits, which overflow."""
    try:
        packed = torch.ops.onednn.qlinear_prepack(torch.full((16, 16), 127, dtype=torch.int8), None)
        x = torch.full((2, 16), 255, dtype=torch.uint8)
        scale, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int32)
        out = torch.ops.onednn.qlinear_pointwise.default(
            x, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError):
        return False
    return bool((out == 16 * 127 * 127).all())


def layer_weights(config: ModelConfig) -> int:
    """How many weights the linear products of all layers have."""
    products = 2 if config.ffn_type == "gelu" else 3
    layer = 4 * config.hidden_dim * config.attention_dim + products * config.hidden_dim * config.ffn_dim
    return config.n_layers * layer


def packed_bytes(
    config: ModelConfig,
    codes: int,
    dtype: torch.dtype,
    weights: WeightFormat = "plain",
    device: torch.device | str = "cpu",
) -> int:
    """Bytes that the laid out copies take beside the dense weights, with a head of `codes` rows."""
    count = layer_weights(config) + codes * config.hidden_dim
    if weights == "int8":
        return count if can_pack(torch.device(device), torch.float32) else 4 * count
    return count * dtype.itemsize if worth_packing(config, codes, dtype, torch.device(device)) else 0


def worth_packing(config: ModelConfig, codes: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the weights are many enough, and can be packed at all."""
    count = layer_weights(config) + codes * config.hidden_dim
    return can_pack(device, dtype) and count * dtype.itemsize >= LEAST_BYTES
