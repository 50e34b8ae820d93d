"""The feed-forward part of a layer: two linear products with an activation between them, gated or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models.packing import product
from evalsvc.spec.model_config import ModelConfig

Activation = Callable[[Tensor], Tensor]  # [..., N] → [..., F]


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


class Gated(FeedForward):
    """Activation of one half of the first product, times the other half."""

    def __init__(self, dim: int, inner: int, activation: Activation, *, bias: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.w12 = Linear(dim, 2 * inner, bias=bias)
        self.w3 = Linear(inner, dim, bias=bias)

    def into(self, x: Tensor) -> Tensor:
        inner: Tensor = self.w12(x)
        return inner

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(x)
        return out

    def parameters_into(self) -> tuple[Tensor, Tensor | None]:
        return self.w12.weight, self.w12.bias

    def parameters_out(self) -> tuple[Tensor, Tensor | None]:
        return self.w3.weight, self.w3.bias


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


class Plain(FeedForward):
    """Activation of the first product."""

    def __init__(self, dim: int, inner: int, activation: Activation, *, bias: bool = False) -> None:
        super().__init__()
        self.activation = activation
        # open_lm has a Sequential here, whose second module is the activation.
        self.add_module("0", Linear(dim, inner, bias=bias))
        self.add_module("2", Linear(inner, dim, bias=bias))

    def into(self, x: Tensor) -> Tensor:
        inner: Tensor = self._product("0")(x)
        return inner

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self._product("2")(x)
        return out

    def parameters_into(self) -> tuple[Tensor, Tensor | None]:
        return self._product("0").weight, self._product("0").bias

    def parameters_out(self) -> tuple[Tensor, Tensor | None]:
        return self._product("2").weight, self._product("2").bias

    def _product(self, name: str) -> Linear:
        module = self.get_submodule(name)
        assert isinstance(module, Linear)
        return module


def build_feed_forward(config: ModelConfig) -> FeedForward:
    """Return the feed-forward part of a layer, without values."""
    dim, inner = config.hidden_dim, config.ffn_dim
    match config.ffn_type:
        case "gemma_geglu":
            return GemmaGeGLU(dim, inner)
        case "gelu":
            return Plain(dim, inner, functional.gelu)
        case "plain":
            return Plain(dim, inner, PLAIN[config.ffn_activation], bias=config.ffn_bias)
        case "gated":
            return Gated(dim, inner, GATED[config.ffn_activation], bias=config.ffn_bias)
        case _:
            return Gated(dim, inner, silu_gated)


def silu_gated(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_gated(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.gelu(gate) * up


def gelu_tanh_gated(inner: Tensor) -> Tensor:  # [..., 2·F] → [..., F]
    gate, up = inner.chunk(2, dim=-1)
    return gelu_tanh(gate) * up


def gelu_tanh(inner: Tensor) -> Tensor:
    """Compute the approximation of GELU by tanh (Hendrycks, Gimpel, 2016)."""
    return functional.gelu(inner, approximate="tanh")


GATED: dict[str, Activation] = {"silu": silu_gated, "gelu": gelu_gated, "gelu_tanh": gelu_tanh_gated}
PLAIN: dict[str, Activation] = {"silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": gelu_tanh}
"""Activations by name. Each is one function, so that it is compiled once."""
