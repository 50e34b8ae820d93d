"""Private parts of torch that may change with any release, one function each.

A build or a release of torch may lack these operators, or have other arguments: callers try a call, and treat
AttributeError, NotImplementedError and RuntimeError as absence.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor


def reorder_linear_weight(weight: Tensor, rows: int) -> Tensor:  # [N, D]
    """Return a copy of `weight` in oneDNN's layout for products with `rows` rows."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows))


def linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear` by oneDNN, with a weight in torch's layout or oneDNN's."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], ""))


def pack_int8_weight(weight: Tensor) -> Tensor:  # [N, D] int8
    """Return a copy of `weight` in oneDNN's layout for `int8_linear_by_onednn`."""
    return cast(Tensor, torch.ops.onednn.qlinear_prepack(weight, None))


def int8_linear_by_onednn(
    x: Tensor,  # [R, D] uint8, the value plus 128
    packed: Tensor,
    scale: Tensor,  # [N]
    zeros: Tensor,  # [N] int32
) -> Tensor:  # [R, N] float32
    """Multiply 8-bit integers by oneDNN, and the sums by `scale`."""
    scales = (1.0, 128, packed, scale, zeros, None, 1.0, 0)
    return cast(Tensor, torch.ops.onednn.qlinear_pointwise.default(x, *scales, torch.float32, "none", [], ""))


def int8_product(left: Tensor, right: Tensor) -> Tensor:  # [R, D] · [D, N] int8 → [R, N] int32
    """Multiply 8-bit integers, on CPUs and GPUs."""
    return torch._int_mm(left, right)


def has_convolution_by_onednn() -> bool:
    """Return whether this build of torch has oneDNN's two convolution operators."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)


def reorder_convolution_weight(weight: Tensor, place: tuple[object, ...], shape: list[int]) -> Tensor:  # [N, C, K, L]
    """Return a copy of `weight` in oneDNN's layout for maps of `shape`; see `convolution_by_onednn`."""
    return cast(Tensor, torch.ops.mkldnn._reorder_convolution_weight(weight, *place, shape))


def convolution_by_onednn(
    x: Tensor, packed: Tensor, bias: Tensor | None, place: tuple[object, ...], then: Literal["relu", "none"]
) -> Tensor:
    """Compute `F.conv2d` with an optional rectifier; `place` is padding, stride, dilation and groups."""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *place, then, [], ""))


def allow_recompilations(count: int) -> None:
    """Let torch.compile make at least `count` versions of one function before it gives up."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, count)
