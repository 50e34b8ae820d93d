"""A layer of open_lm's transformer: the single definition of its arithmetic, for prompts, trees and single tokens.

Tokens are a tensor [..., D] in any arrangement: [B, T, D] for a batch, [R, D] for one new token per row. Only attention
depends on the arrangement, and attention is an argument (`Mix`). So are the linear products, whose weights may have
another layout (`Products`), and the functions between the products, which may be compiled (`Kernels`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models.packing import product
from evalsvc.spec.model_config import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, broadcastable to the heads of queries and keys together, [..., 2·H, head_dim]."""

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention: from a layer's number and its queries, keys and values, each [..., H, head_dim], to [..., H·head_dim]."""

Product = Callable[[Tensor], Tensor]  # [..., D] → [..., N]

Activation = Callable[[Tensor], Tensor]  # [..., N] → [..., F]


@dataclass(frozen=True, eq=False)
class Products:
    """Linear products of a layer."""

    into_attention: Product
    """Product to queries, keys and values, [..., 3·H·head_dim]."""
    out_of_attention: Product
    into_feed_forward: Product
    """Product to the input of the activation: gate and value together, where there is a gate."""
    out_of_feed_forward: Product


@dataclass(frozen=True, eq=False)
class Kernels:
    """Functions between the products, uncompiled (`EAGER`) or compiled."""

    add_norm: Callable[[Tensor, Tensor | None, nn.Module], tuple[Tensor, Tensor]]
    """Function from two summands, where the second may be None, and a norm to the sum and its norm."""
    turn: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
    activation: Callable[[Activation], Activation]
    """Function from an activation to the version that is called."""


class Block(nn.Module):
    """Parameters of a layer under open_lm's names, with the layer's arithmetic."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention = Attention(config)
        self.feed_forward = build_feed_forward(config)
        self.attention_norm = build_norm(config, config.hidden_dim)
        self.ffn_norm = build_norm(config, config.hidden_dim)

    def products(self) -> Products:
        """Return the products with the parameters in torch's layout."""
        attention, feed_forward = self.attention, self.feed_forward
        return Products(attention.in_proj, attention.out_proj, feed_forward.into, feed_forward.out)

    def forward(
        self,
        x: Tensor,  # [..., D]
        delta: Tensor | None,  # [..., D]
        rotation: Rotation | None,
        mix: Mix,
        products: Products,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:  # [..., D] each
        """Compute h = x + attention(norm(x)), then h + feed_forward(norm(h)).

        The input is `x` + `delta`, and the output is two summands too: the next norm adds them, in one kernel where
        compiled.
        """
        x, normed = kernels.add_norm(x, delta, self.attention_norm)
        queries, keys, values = self.attention.heads(products.into_attention(normed), rotation, kernels)
        mixed = mix(self.layer, queries, keys, values).to(values.dtype)
        x, normed = kernels.add_norm(x, products.out_of_attention(mixed), self.ffn_norm)
        activation = kernels.activation(self.feed_forward.activation)
        return x, products.out_of_feed_forward(activation(products.into_feed_forward(normed)))


class Attention(nn.Module):
    """Parameters of attention, with the computation of queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads_each = config.n_heads
        self.head_dim = config.head_dim
        self.width = config.attention_dim
        self.interleaved = config.positional_embedding_type == "llama_rotary"
        self.in_proj = Linear(config.hidden_dim, 3 * self.width, bias=False)
        self.out_proj = Linear(self.width, config.hidden_dim, bias=False)
        self.q_norm = build_norm(config, self.width) if config.qk_norm else None
        self.k_norm = build_norm(config, self.width) if config.qk_norm else None

    def heads(
        self,
        projected: Tensor,  # [..., 3·H·head_dim], of `in_proj`
        rotation: Rotation | None,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor, Tensor]:  # each [..., H, head_dim]
        """Return queries and keys, normed and rotated to their positions, and values."""
        both, values = projected[..., : 2 * self.width], projected[..., 2 * self.width :]
        if self.q_norm is not None and self.k_norm is not None:
            # The norms run over all heads together, before the split.
            queries, keys = both.chunk(2, dim=-1)
            both = torch.cat((self.q_norm(queries), self.k_norm(keys)), dim=-1)
        both = both.view(*both.shape[:-1], 2 * self.heads_each, self.head_dim)
        if rotation is not None:
            both = kernels.turn(both, *rotation, self.interleaved)
        # A norm may have returned float32 under autocast.
        queries, keys = both.to(values.dtype).chunk(2, dim=-2)
        return queries, keys, values.view(*values.shape[:-1], self.heads_each, self.head_dim)


class Linear(nn.Linear):
    """torch's linear layer, with the faster product where available."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


class FeedForward(nn.Module, ABC):
    """Feed-forward part: two linear products with an activation between them."""

    activation: Activation

    @abstractmethod
    def into(self, x: Tensor) -> Tensor:  # [..., D] → [..., N]
        """Compute the input of the activation."""

    @abstractmethod
    def out(self, x: Tensor) -> Tensor:  # [..., F] → [..., D]
        """Compute the result from the output of the activation."""

    @abstractmethod
    def parameters_into(self) -> tuple[Tensor, Tensor | None]:  # [N, D], [N]
        """Return weight and bias of `into` as one product."""

    @abstractmethod
    def parameters_out(self) -> tuple[Tensor, Tensor | None]:  # [D, F], [D]
        """Return weight and bias of `out`."""


class SwiGLU(FeedForward):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.activation = silu_gated
        self.w12 = Linear(dim, 2 * inner, bias=False)
        self.w3 = Linear(inner, dim, bias=False)

    def into(self, x: Tensor) -> Tensor:
        inner: Tensor = self.w12(x)
        return inner

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(x)
        return out

    def parameters_into(self) -> tuple[Tensor, Tensor | None]:
        return self.w12.weight, None

    def parameters_out(self) -> tuple[Tensor, Tensor | None]:
        return self.w3.weight, None


class GemmaGeGLU(FeedForward):
    """open_lm's version: with biases, and exact GELU where Gemma has the tanh approximation."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.activation = gelu_gated
        self.gate_proj = Linear(dim, inner)
        self.up_proj = Linear(dim, inner)
        self.down_proj = Linear(inner, dim)

    def into(self, x: Tensor) -> Tensor:
        return torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(x)
        return out

    def parameters_into(self) -> tuple[Tensor, Tensor | None]:
        gate, up = self.gate_proj, self.up_proj
        return torch.cat((gate.weight, up.weight)), torch.cat((gate.bias, up.bias))

    def parameters_out(self) -> tuple[Tensor, Tensor | None]:
        return self.down_proj.weight, self.down_proj.bias


class Gelu(FeedForward):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.activation = functional.gelu
        # open_lm has a Sequential here, whose second module is the activation.
        self.add_module("0", Linear(dim, inner, bias=False))
        self.add_module("2", Linear(inner, dim, bias=False))

    def into(self, x: Tensor) -> Tensor:
        inner: Tensor = self.get_submodule("0")(x)
        return inner

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule("2")(x)
        return out

    def parameters_into(self) -> tuple[Tensor, Tensor | None]:
        return self.get_parameter("0.weight"), None

    def parameters_out(self) -> tuple[Tensor, Tensor | None]:
        return self.get_parameter("2.weight"), None


def build_feed_forward(config: ModelConfig) -> FeedForward:
    kinds: dict[str, type[SwiGLU | GemmaGeGLU | Gelu]] = {"gelu": Gelu, "gemma_geglu": GemmaGeGLU}
    return kinds.get(config.ffn_type, SwiGLU)(config.hidden_dim, config.ffn_dim)


def silu_gated(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_gated(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.gelu(gate) * up


def turn(
    both: Tensor,  # [..., 2·H, head_dim]
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> Tensor:
    """Rotate queries and keys to their positions."""
    return rotate_pairs(both, cos, sin) if interleaved else rotate_halves(both, cos, sin)


def rotate_halves(
    x: Tensor,  # [..., H, head_dim]
    cos: Tensor,  # [..., 1 or H, head_dim]
    sin: Tensor,
) -> Tensor:
    """Rotate in NeoX's style: dimension j with dimension j + head_dim/2."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_pairs(
    x: Tensor,  # [..., H, head_dim]
    cos: Tensor,  # [..., 1 or H, head_dim / 2] float32
    sin: Tensor,
) -> Tensor:
    """Rotate in Llama's style: dimension 2j with dimension 2j + 1, in float32 for every dtype of `x`."""
    even, odd = x[..., ::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return `x` + `delta`, and the norm of the sum."""
    x = x if delta is None else x + delta
    return x, norm(x)


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
            x, weight, bias = x.to(dtype), _cast(weight, dtype), _cast(bias, dtype)
        with torch.autocast(device, enabled=False):
            return functional.layer_norm(x, self.shape, weight, bias, self.eps)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [D]
    eps: float,
) -> Tensor:
    """Compute x over its root mean square, in float32 at least (Zhang, Sennrich, 2019)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def build_norm(config: ModelConfig, width: int) -> LayerNorm | RMSNorm:
    kind = config.model_norm
    if kind == "rms_norm":
        return RMSNorm(width, config.norm_eps)
    return LayerNorm(
        width,
        config.norm_eps,
        gain=kind != "no_wb_layer_norm",
        bias=kind in ("default_layer_norm", "lp_layer_norm"),
        low_precision="lp_" in kind,
    )


EAGER = Kernels(add_norm, turn, lambda activation: activation)
