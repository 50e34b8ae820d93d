"""A layer of the transformer: the single definition of its arithmetic, for prompts, trees and single tokens.

Tokens are a tensor [..., D] in any arrangement: [B, T, D] for a batch, [R, D] for one new token per row. Only attention
depends on the arrangement, and attention is an argument (`Mix`). So are the linear products, whose weights may have
another layout (`Products`), and the functions between the products, which may be compiled (`Kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models.packing import product
from evalsvc.models.rotation import Rotation, turn
from evalsvc.spec.model_config import ModelConfig

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention: from a layer's number, its queries [..., H, head_dim], and its keys and values [..., KV, head_dim], to
[..., H·head_dim]."""

Product = Callable[[Tensor], Tensor]  # [..., D] → [..., N]
Activation = Callable[[Tensor], Tensor]  # [..., N] → [..., F]
RMSArithmetic = Callable[[Tensor, Tensor, float], Tensor]
"""Function of values [..., D], gain [D] and epsilon to the normed values."""


@dataclass(frozen=True, eq=False)
class Products:
    into_attention: Product
    """Product to queries, keys and values, [..., (H + 2·KV)·head_dim]."""
    out_of_attention: Product
    into_feed_forward: Product
    """Product to the input of the activation: gate and value together, where there is a gate."""
    out_of_feed_forward: Product


@dataclass(frozen=True, eq=False)
class Kernels:
    """Functions between the products, uncompiled (`EAGER`) or compiled."""

    add_norm: Callable[[Tensor, Tensor | None, nn.Module], tuple[Tensor, Tensor]]
    """Function from two summands, where the second may be None, and a norm to the sum and its norm."""
    turn: Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None
    """Rotation of queries and keys; None where attention rotates them."""
    activation: Callable[[Activation], Activation]
    """Function from an activation to the version that is called."""


class Block(nn.Module):
    """Parameters of a layer under open_lm's names, with the layer's arithmetic."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norms_outputs = config.norm_place == "after"
        self.parallel = config.parallel_residual
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = build_norm(config, config.hidden_dim)
        self.ffn_norm = build_norm(config, config.hidden_dim)

    def products(self) -> Products:
        attention, feed_forward = self.attention, self.feed_forward
        return Products(attention.in_proj, attention.out_proj, feed_forward.into, feed_forward.out)

    def products_by(self, product_of: Callable[[Tensor, Tensor | None], Product]) -> Products:
        """Return the products with the parameters in another layout, each made from a weight and a bias."""
        attention, (*into, out) = self.attention, self.feed_forward.linears
        first: tuple[Tensor, Tensor | None] = (into[0].weight, into[0].bias)
        if len(into) > 1:  # only gemma_geglu, which has biases
            first = torch.cat([part.weight for part in into]), torch.cat([part.bias for part in into])
        return Products(
            product_of(attention.in_proj.weight, attention.in_proj.bias),
            product_of(attention.out_proj.weight, attention.out_proj.bias),
            product_of(*first),
            product_of(out.weight, out.bias),
        )

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

        With norms after: h = x + norm(attention(x)), then h + norm(feed_forward(h)). With the parallel residual: x +
        attention(norm(x)) + feed_forward(other norm(x)).

        The input is `x` + `delta`, and the output is two summands too: the next norm adds them, in one kernel where
        compiled.
        """

        def attended(values: Tensor) -> Tensor:
            queries, keys, values = self.attention.heads(products.into_attention(values), rotation, kernels)
            return products.out_of_attention(mix(self.layer, queries, keys, values).to(values.dtype))

        def fed(values: Tensor) -> Tensor:
            activation = kernels.activation(self.feed_forward.activation)
            return products.out_of_feed_forward(activation(products.into_feed_forward(values)))

        if self.norms_outputs:
            x = x if delta is None else x + delta
            x = x + kernels.add_norm(attended(x), None, self.attention_norm)[1]
            return x, kernels.add_norm(fed(x), None, self.ffn_norm)[1]
        x, normed = kernels.add_norm(x, delta, self.attention_norm)
        if self.parallel:
            return x, attended(normed) + fed(kernels.add_norm(x, None, self.ffn_norm)[1])
        x, normed = kernels.add_norm(x, attended(normed), self.ffn_norm)
        return x, fed(normed)


class Linear(nn.Linear):
    """torch's linear layer, with the faster product where available."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


class Attention(nn.Module):
    """Parameters of attention, with the computation of queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Number of heads, and their total width, of queries and of keys.
        self.counts, self.widths = (config.n_heads, config.kv_heads), (config.attention_dim, config.kv_dim)
        self.head_dim = config.head_dim
        self.interleaved = config.positional_embedding_type == "llama_rotary"
        self.norms_each_head = config.qk_norm_per_head
        self.in_proj = Linear(config.hidden_dim, config.attention_dim + 2 * config.kv_dim, bias=config.attention_bias)
        self.out_proj = Linear(config.attention_dim, config.hidden_dim, bias=config.output_bias)
        self.q_norm, self.k_norm = self._norms(config)

    def _norms(self, config: ModelConfig) -> tuple[nn.Module | None, nn.Module | None]:
        if not config.qk_norm:
            return None, None
        if config.qk_layer_norm:
            return HeadNorm(config.n_heads, config.head_dim), HeadNorm(config.kv_heads, config.head_dim)
        queries, keys = (config.head_dim, config.head_dim) if self.norms_each_head else self.widths
        return build_norm(config, queries), build_norm(config, keys)

    def heads(
        self,
        projected: Tensor,  # [..., (H + 2·KV)·head_dim], of `in_proj`
        rotation: Rotation | None,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., H, head_dim], then [..., KV, head_dim] twice
        """Return queries and keys, normed and rotated to their positions, and values."""
        both, values = projected[..., : sum(self.widths)], projected[..., sum(self.widths) :]
        if not self.norms_each_head:
            both = self._normed(both, self.widths, -1, kernels)
        both = both.view(*both.shape[:-1], sum(self.counts), self.head_dim)
        if self.norms_each_head:
            both = self._normed(both, self.counts, -2, kernels)
        if rotation is not None and kernels.turn is not None:
            both = kernels.turn(both, *rotation, self.interleaved)
        # A norm may have returned float32 under autocast.
        queries, keys = _parts(both.to(values.dtype), self.counts, -2)
        return queries, keys, values.view(*values.shape[:-1], self.counts[1], self.head_dim)

    def _normed(self, both: Tensor, sizes: tuple[int, int], dim: int, kernels: Kernels) -> Tensor:
        if self.q_norm is None or self.k_norm is None:
            return both
        parts = zip(_parts(both, sizes, dim), (self.q_norm, self.k_norm), strict=True)
        return torch.cat([kernels.add_norm(part, None, norm)[1] for part, norm in parts], dim=dim)


def _parts(both: Tensor, sizes: tuple[int, int], dim: int) -> tuple[Tensor, Tensor]:
    return both.narrow(dim, 0, sizes[0]), both.narrow(dim, sizes[0], sizes[1])


class FeedForward(nn.Module):
    """Parameters of the feed-forward part: two linear products with an activation between them, gated or not.

    open_lm's `gemma_geglu` has biases, exact GELU where Gemma has the tanh approximation, and two modules for gate and
    values. `gelu` is a Sequential in open_lm, whose second module is the activation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, inner, kind = config.hidden_dim, config.ffn_dim, config.ffn_type
        into, out, widths = ["w12"], "w3", 2 * inner
        bias = config.ffn_bias if kind in ("plain", "gated") else kind == "gemma_geglu"
        self.activation = GATED[config.ffn_activation if kind == "gated" else "silu"]
        if kind == "gemma_geglu":
            into, out, widths, self.activation = ["gate_proj", "up_proj"], "down_proj", inner, GATED["gelu"]
        elif kind in ("gelu", "plain"):
            into, out, widths = ["0"], "2", inner
            self.activation = PLAIN[config.ffn_activation if kind == "plain" else "gelu"]
        self.linears = [*(Linear(dim, widths, bias=bias) for _ in into), Linear(inner, dim, bias=bias)]
        """Products into the activation, and last the product out of the activation."""
        for name, linear in zip([*into, out], self.linears, strict=True):
            self.add_module(name, linear)

    def into(self, x: Tensor) -> Tensor:  # [..., D] → [..., N]
        parts = [linear(x) for linear in self.linears[:-1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def out(self, x: Tensor) -> Tensor:  # [..., F] → [..., D]
        out: Tensor = self.linears[-1](x)
        return out


def gelu_tanh(inner: Tensor) -> Tensor:
    """Compute the approximation of GELU by tanh (Hendrycks, Gimpel, 2016)."""
    return functional.gelu(inner, approximate="tanh")


def gated(activation: Activation) -> Activation:
    def gate_and_multiply(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
        gate, up = inner.chunk(2, dim=-1)
        return activation(gate) * up

    return gate_and_multiply


PLAIN: dict[str, Activation] = {"silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": gelu_tanh}
GATED = {name: gated(activation) for name, activation in PLAIN.items()}
"""Activations by name. Each is one function, so that it is compiled once."""


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    x = x if delta is None else x + delta
    return x, norm(x)


EAGER = Kernels(add_norm, turn, lambda activation: activation)


class LayerNorm(nn.Module):
    """Layer norm with or without gain and bias; with `low_precision`, its output keeps autocast's dtype."""

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


class HeadNorm(nn.Module):
    """Layer norm of each head, with a gain and bias of the head's own, as in Chameleon."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.shape = (width,)
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:  # [..., H, head_dim]
        return functional.layer_norm(x, self.shape, eps=1e-5) * self.weight + self.bias


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
