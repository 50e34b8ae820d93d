"""Attention of several queries to keys in torch's layout, where several heads of queries may share keys and values.

Keys and values of earlier tokens are in a `KVCache`, in buffers of a fixed size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import InternalError
from evalsvc.spec.model_config import ModelConfig

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MOST = 448.0
"""Largest number of float8."""


def attention_dtype(cached: torch.dtype | None, model: torch.dtype) -> torch.dtype:
    """Return the dtype of attention to keys and values in `cached`; None: the model's. No processor computes in float8:
    such keys and values are read as numbers of the model's dtype."""
    return model if cached in (None, FLOAT8) else cached


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` as a cache stores them. In float8 they are the nearest of its numbers, of which the largest also
    stands for all above; infinity becomes NaN, which float8 has, so that a diverged model is still noticed."""
    if dtype != FLOAT8:
        return values.to(dtype)
    return (values.clamp(-FLOAT8_MOST, FLOAT8_MOST) + (values - values)).to(dtype)


class KVCache:
    """Preallocated keys and values of every layer, filled from slot 0 up to `length`. Each layer writes the new tokens
    at the slots from `length` on; the model then calls `advance` once."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Slots are next to head_dim, so that attention reads in order.
        shape = (config.n_layers, batch, config.kv_heads, capacity, config.head_dim)
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
        if batch != self.keys.shape[1]:
            raise InternalError(f"the cache was made for {self.keys.shape[1]} rows and got {batch}; make one per batch")
        if self.length + tokens > self.capacity:
            raise InternalError(
                f"the cache has {self.capacity} slots, {self.length} are filled and {tokens} more do not fit; "
                f"make it with new_cache(batch, length={self.length + tokens}) or more"
            )

    def keep(self, rows: Tensor) -> None:  # [R] int64
        """Keep only these rows of the batch, as a copy; the memory of the other rows is freed."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]

    def advance(self, tokens: int) -> None:
        self.length += tokens


def attend(
    bias: Tensor | None,  # [B or 1, 1, T, S]
    cache: KVCache | None,
    layer: int,
    queries: Tensor,  # [B, T, H, head_dim]
    keys: Tensor,  # [B, T, KV, head_dim]
    values: Tensor,
) -> Tensor:  # [B, T, H·head_dim]
    """Attend from new tokens to each other and to the tokens in `cache`, which then holds the new tokens too."""
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    if cache is not None:
        keys, values = cache.write(layer, keys, values)
        queries = queries.to(keys.dtype)
    # SDPA's causal flag covers one case: several tokens without a mask or earlier tokens. A single token attends to all
    # earlier tokens and needs no mask; every other case has a bias.
    causal = bias is None and queries.shape[2] > 1
    bias = bias if bias is None else bias.to(queries.dtype)
    return grouped_attention(queries, keys, values, bias, causal=causal).transpose(1, 2).flatten(2)


def grouped_attention(
    queries: Tensor,  # [B, H, T, head_dim]
    keys: Tensor,  # [B, KV, S, head_dim]
    values: Tensor,  # [B, KV, S, head_dim]
    bias: Tensor | None = None,  # [B or 1, 1, T, S]
    *,
    causal: bool = False,
) -> Tensor:  # [B, H, T, head_dim]
    """Compute torch's scaled dot-product attention, where each head of keys serves H / KV heads of queries. Their
    single queries become several queries of the shared head, which reads the keys once for all."""
    shape, shared = queries.shape, keys.shape[1]
    if shape[1] == shared:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, is_causal=causal)
    if shape[2] == 1:
        queries = queries.reshape(shape[0], shared, -1, shape[3])
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias).reshape(shape)
    shares = reads_shared_keys(queries, bias)
    if not shares:
        keys, values = (part.repeat_interleave(shape[1] // shared, dim=1) for part in (keys, values))
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=bias, is_causal=causal, enable_gqa=shares
    )


def reads_shared_keys(queries: Tensor, bias: Tensor | None) -> bool:
    """Return whether torch has a fused kernel for several queries of heads that share keys: on CUDA that is only flash
    attention, from Ampere on. In all other cases `enable_gqa` selects an unfused kernel, which holds the scores of all
    pairs."""
    if queries.device.type != "cuda":
        return True
    fits = bias is None and queries.dtype in (torch.float16, torch.bfloat16) and queries.shape[-1] <= 256
    return fits and torch.cuda.get_device_capability(queries.device) >= (8, 0)


def attention_bias(
    mask: Tensor | None,  # [B, S] bool
    batch: int,
    new: int,
    past: int,
    like: Tensor,
) -> Tensor | None:  # [B or 1, 1, T, S], 0 to attend and -inf not to
    """Return the bias added to the scores; None where SDPA needs no mask, or only its causal flag. That depends on
    shapes and on whether there is a mask, never on its values: the arithmetic of a row is independent of others."""
    total = past + new
    if mask is None and (past == 0 or new == 1):
        return None
    allowed = torch.ones(new, total, dtype=torch.bool, device=like.device).tril(past)[None, None]
    if mask is not None:
        if mask.shape != (batch, total) or mask.dtype != torch.bool:
            actual = f"{list(mask.shape)} {mask.dtype}"
            raise InternalError(
                f"mask is {actual}, expected {[batch, total]} torch.bool: one column per cached and new token"
            )
        allowed = allowed & mask[:, None, None, :]
        # A padded query attends to no token, and its softmax would be NaN: it attends to everything, as in open_lm.
        allowed = allowed | ~allowed.any(-1, keepdim=True)
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill_(~allowed, float("-inf"))
