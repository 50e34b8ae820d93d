"""Keys and values of the tokens so far, in buffers of a fixed size."""

from __future__ import annotations

import torch
from torch import Tensor

from evalsvc.errors import InternalError


class KVCache:
    """Preallocated keys and values of every layer, filled from slot 0 up to `length`.

    Each layer writes the new tokens at the slots from `length` on; the model then calls `advance` once.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (
            n_layers,
            batch,
            kv_heads,
            capacity,
            head_dim,
        )  # slots next to head_dim, so that attention reads in order
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def write(
        self,
        layer: int,
        keys: Tensor,  # [B, KV, T, head_dim]
        values: Tensor,  # [B, KV, T, head_dim]
    ) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer; return its live keys and values, views of [B, KV, length + T, head_dim]."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def require_room(self, batch: int, tokens: int) -> None:
        """Raise InternalError unless `tokens` more tokens of `batch` rows fit."""
        if batch != self.keys.shape[1]:
            raise InternalError(f"the cache was made for {self.keys.shape[1]} rows and got {batch}; make one per batch")
        if self.length + tokens > self.capacity:
            raise InternalError(
                f"the cache has {self.capacity} slots, {self.length} are filled and {tokens} more do not fit; "
                f"make it with new_cache(batch, length={self.length + tokens}) or more"
            )

    def keep(
        self,
        rows: Tensor,  # [R] int64
    ) -> None:
        """Keep only these rows of the batch, as a copy; the memory of the other rows is freed."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]

    def advance(self, tokens: int) -> None:
        self.length += tokens
