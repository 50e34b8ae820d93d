"""The part of the Transformer that trees of sequences and decoding steps compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from evalsvc.models.kv_cache import KVCache
from evalsvc.models.layer import EAGER, Kernels, Mix, Products
from evalsvc.models.rotation import Positions
from evalsvc.spec.model_config import ModelConfig


class Layered(Protocol):
    """Layers between two tables, whose attention and products are arguments."""

    config: ModelConfig
    positions: Positions
    tok_embeddings: nn.Embedding
    layers: nn.ModuleList
    output: nn.Linear
    packed: tuple[object, object] | None
    """Last layout of the weights for decoding, with its key; see `decoding.lay_out`."""

    def hidden(
        self,
        ids: Tensor,  # [B, T] int64
        *,
        mask: Tensor | None = None,  # [B, S] bool
        positions: Tensor | None = None,  # [B, T] int64
        cache: KVCache | None = None,
    ) -> Tensor:  # [B, T, D]
        """Compute the output of the final norm."""

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for `length` tokens of `batch` rows, by default in the model's dtype."""

    def mixed(
        self,
        ids: Tensor,  # [B, T] int64, or [R]
        positions: Tensor,  # [B or 1, T] int64, or [R]
        mix: Mix,
        products: Sequence[Products] | None = None,
        kernels: Kernels = EAGER,
    ) -> Tensor:  # [B, T, D]
        """Compute the output of the final norm with any attention, given by `mix`."""
