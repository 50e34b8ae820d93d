"""Linear products by oneDNN on a CPU.

`F.linear` in float32 uses MKL, which on some processors reaches half of oneDNN's rate. oneDNN first rearranges the
weight into its layout: at every call for many rows (`product`), once for few rows (`packed_linear`). Where oneDNN is
not available (float64, a GPU, another build of torch), the plain product is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InvalidRequest
from evalsvc.models import private
from evalsvc.spec.model_config import ModelConfig

WeightFormat = Literal["plain", "int8"]
Linear = Callable[[Tensor], Tensor]  # [R, D] → [R, N]

PACKED_DTYPES = (torch.float32, torch.bfloat16)
LEAST_BYTES = 32 << 20
"""Total bytes of weights below which all weights stay in the CPU caches, and the layout matters little."""
MANY_ROWS = 16
"""Number of rows from which rearranging a weight for a single product pays off."""
SCRATCH_BYTES = 128 << 20
"""Largest weight that is rearranged for one product, which needs as much memory again."""
INT8_ROWS = 32
"""Smallest number of rows of an integer product: a GPU refuses up to 16, and is fast with powers of two."""
INT8_LANES = 16
"""Multiple to which 8-bit weights are padded: a GPU requires multiples of 8, and is fast from 16 on."""


def product(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [N, D]
    bias: Tensor | None,  # [N]
) -> Tensor:  # [..., N]
    """Compute `F.linear`, by oneDNN for many rows in float32. The order of a row's sum is independent of other rows."""
    if (
        weight.dtype == x.dtype == torch.float32
        and x.numel() >= MANY_ROWS * x.shape[-1]
        and weight.nbytes <= SCRATCH_BYTES
        and not torch.is_grad_enabled()
        and can_pack(x.device, x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return private.linear_by_onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the product with the weight in torch's layout."""
    return lambda x: functional.linear(x, weight, bias)


def packed_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Linear:  # [N, D], [N]
    """Return the product with a copy of `weight` in oneDNN's layout for `rows` rows; `plain_linear` without oneDNN."""
    if not can_pack(weight.device, weight.dtype):
        return plain_linear(weight, bias)
    packed = private.reorder_linear_weight(weight, rows)
    return lambda x: private.linear_by_onednn(x, packed, bias)


def int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:  # [N, D], [N]
    """Return the product of weights rounded to 8 bits, with a scale per output, and inputs with a scale per row. The
    sums are exact in 32 bits, so that devices differ only by the final scaling."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight_scale = _scale(weight.to(wide))  # [N, 1]
    rounded = (weight.to(wide) / weight_scale).round_().to(torch.int8)
    product = _int8_product(rounded, weight_scale.squeeze(1))

    def linear(x: Tensor) -> Tensor:
        row_scale = _scale(x.to(wide))
        out = product((x.to(wide) / row_scale).round_()) * row_scale
        return (out if bias is None else out + bias.to(wide)).to(x.dtype)

    return linear


def _scale(x: Tensor) -> Tensor:  # [R, D] → [R, 1]
    return x.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127


def _int8_product(rounded: Tensor, scale: Tensor) -> Linear:  # [N, D] int8, [N]; of whole numbers, -127…127
    if not _by_onednn(scale.device, scale.dtype):
        multiply_whole = whole_number_product(rounded)
        return lambda x: multiply_whole(x.to(torch.int8)).to(scale.dtype) * scale
    packed = private.pack_int8_weight(rounded)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    # The instruction multiplies unsigned by signed.
    return lambda x: private.int8_linear_by_onednn((x + 128).to(torch.uint8), packed, scale, zeros)


def whole_number_product(weight: Tensor) -> Linear:  # [N, D] int8 → a product [R, D] int8 → [R, N] int32
    """Return the exact product with `weight`, of which a copy is kept, padded with zeros for a GPU. The operations
    depend only on shapes and never wait, so that a CUDA graph can record them."""
    if not multiplies_int8(weight.device):
        raise InvalidRequest(
            f"weights: int8 needs exact products of 8-bit numbers, which torch {torch.__version__} does not have on "
            f"the device {str(weight.device)!r}; give weights: plain, or another device"
        )
    outputs, width = weight.shape
    # Transposed as a view: a GPU multiplies rows by rows, and refuses other layouts.
    columns = _padded(weight, _rounded(outputs), _rounded(width)).contiguous().t()

    def product(x: Tensor) -> Tensor:
        rows = len(x)
        filled = _padded(x, max(rows, INT8_ROWS), _rounded(width)).contiguous()
        return private.int8_product(filled, columns)[:rows, :outputs]

    return product


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:  # [rows, columns], zeros at the ends
    if x.shape == (rows, columns):
        return x
    return functional.pad(x, (0, columns - x.shape[1], 0, rows - x.shape[0]))


def _rounded(count: int) -> int:
    return -(-count // INT8_LANES) * INT8_LANES


@functools.cache
def multiplies_int8(device: torch.device) -> bool:
    """Return whether integer products exist and are exact at the ends of the range: old processors add in 16 bits."""
    try:
        left, right = (torch.full((count, INT8_LANES), 127, dtype=torch.int8, device=device) for count in (32, 16))
        left[1::2], right[1::2] = -127, -127
        exact = left.cpu().long() @ right.cpu().long().t()
        return torch.equal(private.int8_product(left, right.t()).cpu().long(), exact)
    except torch.OutOfMemoryError:  # not cached: memory may be free later
        raise
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


@functools.cache
def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies this dtype, with weights in oneDNN's layout and in torch's layout."""
    if device.type != "cpu" or dtype not in PACKED_DTYPES:
        return False
    ones = torch.ones(16, 16, dtype=dtype)
    try:
        for weight in (private.reorder_linear_weight(ones, 2), ones):
            private.linear_by_onednn(ones[:2], weight, None)
    except (AttributeError, RuntimeError):  # bfloat16 on an old CPU, or a torch with other operators
        return False
    return True


def _by_onednn(device: torch.device, wide: torch.dtype) -> bool:
    return can_pack(device, wide) and _has_int8()


@functools.cache
def _has_int8() -> bool:
    """Return whether oneDNN's product is exact: without VNNI, sums of two products overflow 16 bits."""
    try:
        packed = private.pack_int8_weight(torch.full((16, 16), 127, dtype=torch.int8))
        x = torch.full((2, 16), 255, dtype=torch.uint8)
        out = private.int8_linear_by_onednn(x, packed, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return bool((out == 16 * 127 * 127).all())


def layer_weights(config: ModelConfig) -> int:
    return config.n_layers * sum(outputs * width for outputs, width in _products(config))


def _head_weights(config: ModelConfig, codes: int) -> int:
    return (codes + (0 if config.image_tables is None else config.hidden_dim)) * config.hidden_dim


def _products(config: ModelConfig) -> list[tuple[int, int]]:
    dim, attention, inner = config.hidden_dim, config.attention_dim, config.ffn_dim
    into = 2 * inner if config.ffn_is_gated else inner
    return [(attention + 2 * config.kv_dim, dim), (dim, attention), (into, dim), (dim, inner)]


def packed_bytes(
    config: ModelConfig,
    codes: int,
    dtype: torch.dtype,
    weights: WeightFormat = "plain",
    device: torch.device | str = "cpu",
) -> int:
    """Return the bytes of the laid out copies in addition to the dense weights, with a head of `codes` rows."""
    count = layer_weights(config) + _head_weights(config, codes)
    if weights == "plain":
        return count * dtype.itemsize if worth_packing(config, codes, dtype, torch.device(device)) else 0
    if _by_onednn(torch.device(device), torch.promote_types(dtype, torch.float32)):
        return count
    layer = sum(_rounded(outputs) * _rounded(width) for outputs, width in _products(config))
    return config.n_layers * layer + _rounded(codes) * _rounded(config.hidden_dim)


def copied_bytes(config: ModelConfig, codes: int, dtype: torch.dtype, consecutive: bool) -> int:
    """Return the bytes of copies in torch's layout, where nothing is packed: of weights that are two parameters in the
    model, and of the head's rows unless they are `consecutive` in the table."""
    joined = 2 * config.n_layers * config.ffn_dim * config.hidden_dim if config.ffn_type == "gemma_geglu" else 0
    return (joined + (0 if consecutive else codes * config.hidden_dim)) * dtype.itemsize


def worth_packing(config: ModelConfig, codes: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the weights are large enough for packing and the device can pack them."""
    count = layer_weights(config) + _head_weights(config, codes)
    return can_pack(device, dtype) and count * dtype.itemsize >= LEAST_BYTES
