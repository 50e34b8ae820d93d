"""The norms of a transformer: layer norms as open_lm has them, and root mean square norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.spec.model_config import ModelConfig

RMSArithmetic = Callable[[Tensor, Tensor, float], Tensor]
"""Function of values [..., D], gain [D] and epsilon to the normed values."""


class LayerNorm(nn.Module):
    """Layer norm with or without gain and bias.

    With `low_precision` the output keeps autocast's dtype, where torch's layer norm would return float32.
    """

    def __init__(self, width: int, eps: float, *, gain: bool, bias: bool, low_precision: bool) -> None:
        super().__init__()
        self.shape = (width,)
        self.eps = eps
        self.low_precision = low_precision
        self.weight = nn.Parameter(torch.ones(width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if not self.low_precision or not torch.is_autocast_enabled(device):
            return functional.layer_norm(x, self.shape, weight, bias, self.eps)
        if device != "cpu":  # open_lm uses only CUDA's autocast, so on a CPU no tensor is cast
            dtype = torch.get_autocast_dtype(device)
            x = x.to(dtype)
            weight, bias = (part if part is None else part.to(dtype) for part in (weight, bias))
        with torch.autocast(device, enabled=False):
            return functional.layer_norm(x, self.shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """Root mean square norm, by one of the functions below."""

    def __init__(self, width: int, eps: float, arithmetic: RMSArithmetic) -> None:
        super().__init__()
        self.eps = eps
        self.arithmetic = arithmetic
        self.weight = nn.Parameter(torch.zeros(width) if arithmetic is rms_norm_plus_one else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.arithmetic(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x over its root mean square, in float32 at least (Zhang, Sennrich, 2019)."""
    return _normed(x, eps).to(x.dtype) * weight


def rms_norm_wide(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm` with the gain applied before rounding, as in OLMo 2."""
    normed = _normed(x, eps)
    return (normed * weight.to(normed.dtype)).to(x.dtype)


def rms_norm_plus_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm_wide` with the gain 1 + `weight`, as in Gemma."""
    normed = _normed(x, eps)
    return (normed * (1 + weight.to(normed.dtype))).to(x.dtype)


def _normed(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


RMS_NORMS: dict[str, RMSArithmetic] = {
    "rms_norm": rms_norm,
    "rms_norm_wide": rms_norm_wide,
    "rms_norm_plus_one": rms_norm_plus_one,
}


def build_norm(config: ModelConfig, width: int) -> LayerNorm | RMSNorm:
    """Return a norm of vectors of `width` values, with neutral values."""
    kind = config.model_norm
    if kind in RMS_NORMS:
        return RMSNorm(width, config.norm_eps, RMS_NORMS[kind])
    return LayerNorm(
        width,
        config.norm_eps,
        gain=kind != "no_wb_layer_norm",
        bias=kind in ("default_layer_norm", "lp_layer_norm"),
        low_precision="lp_" in kind,
    )
