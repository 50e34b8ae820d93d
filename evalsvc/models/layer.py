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

from evalsvc.models.feed_forward import Activation, Linear, build_feed_forward
from evalsvc.models.norms import build_norm
from evalsvc.models.rotation import Rotation, turn
from evalsvc.spec.model_config import ModelConfig

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention: from a layer's number, its queries [..., H, head_dim], and its keys and values [..., KV, head_dim], to
[..., H·head_dim]."""

Product = Callable[[Tensor], Tensor]  # [..., D] → [..., N]


@dataclass(frozen=True, eq=False)
class Products:
    """Linear products of a layer."""

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
    turn: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
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
            x = x + self.attention_norm(attended(x))
            return x, self.ffn_norm(fed(x))
        x, normed = kernels.add_norm(x, delta, self.attention_norm)
        if self.parallel:
            return x, attended(normed) + fed(self.ffn_norm(x))
        x, normed = kernels.add_norm(x, attended(normed), self.ffn_norm)
        return x, fed(normed)


class Attention(nn.Module):
    """Parameters of attention, with the computation of queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.counts = (config.n_heads, config.kv_heads)
        """Number of heads of queries, and of keys."""
        self.widths = (config.attention_dim, config.kv_dim)
        """Width of all queries, and of all keys."""
        self.head_dim = config.head_dim
        self.interleaved = config.positional_embedding_type == "llama_rotary"
        self.norms_each_head = config.qk_norm_per_head
        self.in_proj = Linear(config.hidden_dim, config.attention_dim + 2 * config.kv_dim, bias=config.attention_bias)
        self.out_proj = Linear(config.attention_dim, config.hidden_dim, bias=config.output_bias)
        normed = (config.head_dim, config.head_dim) if self.norms_each_head else self.widths
        self.q_norm, self.k_norm = (build_norm(config, width) if config.qk_norm else None for width in normed)

    def heads(
        self,
        projected: Tensor,  # [..., (H + 2·KV)·head_dim], of `in_proj`
        rotation: Rotation | None,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., H, head_dim], then [..., KV, head_dim] twice
        """Return queries and keys, normed and rotated to their positions, and values."""
        both, values = projected[..., : sum(self.widths)], projected[..., sum(self.widths) :]
        if not self.norms_each_head:
            both = self._normed(both, self.widths, -1)
        both = both.view(*both.shape[:-1], sum(self.counts), self.head_dim)
        if self.norms_each_head:
            both = self._normed(both, self.counts, -2)
        if rotation is not None:
            both = kernels.turn(both, *rotation, self.interleaved)
        # A norm may have returned float32 under autocast.
        queries, keys = _parts(both.to(values.dtype), self.counts, -2)
        return queries, keys, values.view(*values.shape[:-1], self.counts[1], self.head_dim)

    def _normed(self, both: Tensor, sizes: tuple[int, int], dim: int) -> Tensor:
        if self.q_norm is None or self.k_norm is None:
            return both
        queries, keys = _parts(both, sizes, dim)
        return torch.cat((self.q_norm(queries), self.k_norm(keys)), dim=dim)


def _parts(both: Tensor, sizes: tuple[int, int], dim: int) -> tuple[Tensor, Tensor]:
    return both.narrow(dim, 0, sizes[0]), both.narrow(dim, sizes[0], sizes[1])


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return `x` + `delta`, and the norm of the sum."""
    x = x if delta is None else x + delta
    return x, norm(x)


EAGER = Kernels(add_norm, turn, lambda activation: activation)
