"""The step that draws one token of every row: the model laid out once for it, and only for it.

`DecodeStep.begin` takes what the prompts left in a KVCache; each call then computes one new token of every row. The
arithmetic is `Transformer.mixed`'s; what differs is where weights, keys and values lie and how many kernels run:

- plain: the model's own weights, and SDPA over the live slots.
- packed: weights in oneDNN's layout.
- compiled: packed, keys and values in blocks of 16, and torch.compile for what lies between the products. Attention
  is a sum of products in float32, since SDPA is several times slower there for one query.
- graph: every tensor stays where it is and the attended span grows by whole spans, so that a CUDA graph of each span
  can be replayed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models import private
from evalsvc.models.graphs import Graphs
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.layer import EAGER, Block, Kernels, Products, RMSNorm, add_norm, rms_norm, silu_gated, turn
from evalsvc.models.open_lm import Transformer
from evalsvc.models.packing import Linear, WeightFormat, int8_linear, packed_linear, plain_linear

DecodePath = Literal["plain", "packed", "compiled", "graph"]

BLOCK = 16
"""Slots, or dimensions, that lie together in a compiled step: float32 lanes of the widest vector registers."""
SPAN = 64
"""Slots by which a graph's attention grows: 6 % more is read than is live, for 18 graphs an image."""


def rounded_slots(slots: int, path: DecodePath) -> int:
    """Return how many slots a step on this path has for so many tokens."""
    size = {"compiled": BLOCK, "graph": SPAN}.get(path, 1)
    return -(-slots // size) * size


# weights


@dataclass(frozen=True, eq=False)
class LaidOut:
    """All products of a step."""

    layers: tuple[Products, ...]
    head: Linear


@dataclass(frozen=True)
class WeightLayout:
    """How a model's weights are laid out for decoding. Equal ones are made once."""

    image_ids: range | tuple[int, ...]
    """Rows of the head."""
    rows: int
    """Sequences in a step: the layout is made for so many."""
    packed: bool
    weights: WeightFormat = "plain"

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        if self.weights == "int8":
            return int8_linear(weight, bias)
        return packed_linear(weight, bias, self.rows) if self.packed else plain_linear(weight, bias)


def lay_out(model: Transformer, layout: WeightLayout) -> LaidOut:
    """The model's weights in this layout: those made last, where they fit, so that shards share them.

    They live on the model and go with it. Set `model.packed` to None when its weights were changed in place.
    """
    weight = model.output.weight
    key = (layout, weight.dtype, weight.device)
    if model.packed is None or model.packed[0] != key:
        model.packed = None  # before the new ones are made: both together may not fit
        model.packed = (key, _make(model, layout))
    return cast(LaidOut, model.packed[1])


def _make(model: Transformer, layout: WeightLayout) -> LaidOut:
    layers = tuple(_products(cast(Block, layer), layout) for layer in model.layers)
    return LaidOut(layers, layout.linear(model.output.weight[_index(layout.image_ids, model)].detach()))


def _products(layer: Block, layout: WeightLayout) -> Products:
    linear, attention, feed_forward = layout.linear, layer.attention, layer.feed_forward
    return Products(
        linear(attention.in_proj.weight),
        linear(attention.out_proj.weight),
        linear(*feed_forward.parameters_into()),
        linear(*feed_forward.parameters_out()),
    )


def _index(image_ids: Sequence[int], model: Transformer) -> slice | Tensor:
    """A slice reads the table in place; an index copies it."""
    if isinstance(image_ids, range) and image_ids.step == 1:
        return slice(image_ids.start, image_ids.stop)
    return torch.tensor(list(image_ids), device=model.output.weight.device)


def blocked_attention(
    queries: Tensor,  # [R, H, head_dim]
    keys: Tensor,  # [R, H, S / BLOCK, head_dim, BLOCK]
    values: Tensor,  # [R, H, head_dim / width, S, width]
    bias: Tensor,  # [R, S], 0 to attend and -inf not to
    span: int,  # slots to look at, a multiple of BLOCK
) -> Tensor:  # [R, H·head_dim], in the arithmetic's dtype
    """softmax(q·K / √head_dim)·V over the first `span` slots, in float32 at least whatever the cache's dtype."""
    wide = torch.promote_types(keys.dtype, torch.float32)
    scores = (queries.to(wide)[:, :, None, :, None] * keys[:, :, : span // BLOCK].to(wide)).sum(3).flatten(2)
    weights = (scores * queries.shape[-1] ** -0.5 + bias[:, None, :span].to(wide)).softmax(-1)
    mixed: Tensor = (weights[:, :, None, :, None] * values[:, :, :, :span].to(wide)).sum(3)
    return mixed.flatten(1)


@functools.cache
def compiled(function: Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """`function` by torch.compile, the same one for every caller in this process; each shape is compiled once.

    With `dynamic` one compilation serves all shapes, and is the slower the less the function itself fixes of them.
    """
    # Each dtype, architecture and batch is another compilation, and a worker may see many.
    private.allow_recompilations(64)
    # A worker of Dask must not fork others to compile.
    return torch.compile(function, dynamic=dynamic, fullgraph=True, options={"compile_threads": 1})


@functools.cache
def compiled_attention(rows: int, heads: int, head_dim: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
    """`blocked_attention` for all spans of one batch shape: what is fixed here need not be computed in its loops."""

    def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, span: int) -> Tensor:
        width = BLOCK if head_dim % BLOCK == 0 else head_dim
        queries = queries.reshape(rows, heads, head_dim)
        keys = keys.view(rows, heads, -1, head_dim, BLOCK)
        values = values.view(rows, heads, head_dim // width, -1, width)
        return blocked_attention(queries, keys, values, bias, span)

    return compiled(attention, dynamic=True)


@functools.cache
def compiled_kernels() -> Kernels:
    return Kernels(compiled_add_norm, compiled(turn), compiled)


def compiled_add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`add_norm`, in one kernel where the norm has none of its own."""
    if delta is None or not isinstance(norm, RMSNorm):
        return add_norm(x, delta, norm)
    added: tuple[Tensor, Tensor] = compiled(add_rms)(x, delta, norm.weight, norm.eps)
    return added


def add_rms(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + delta
    return x, rms_norm(x, weight, eps)


@functools.cache
def can_compile(device: str) -> bool:
    """Whether torch.compile works here: it needs a C++ compiler, on a GPU Triton. Takes seconds the first time."""
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            ones = torch.ones(2, 32, device=device)
            return bool(torch.equal(compiled(silu_gated)(ones), silu_gated(ones)))
    except Exception:  # whatever is missing, the answer is no
        return False


# keys and values


class DecodeCache(Protocol):
    """Keys and values of all rows, and attention over them."""

    def load(self, rows: slice, prefix: KVCache) -> None:
        """Fill the first slots of these rows from a cache of as many rows, or of one that all of them share."""

    def attend(
        self,
        layer: int,
        queries: Tensor,  # [R, H, head_dim]
        keys: Tensor,  # [R, H, head_dim]
        values: Tensor,  # [R, H, head_dim]
        slot: Slot,
        bias: Tensor,  # [R, capacity]
    ) -> Tensor:  # [R, H·head_dim]
        """Store one token of every row and mix what it attends to."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the new token goes."""

    index: int | Tensor
    """A number, or [1] int64 where a graph reads it at every replay."""
    span: int
    """Slots to look at; those behind the new one have a bias of -inf."""


class StraightCache:
    """As in KVCache, for SDPA."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros: what is not live yet may be looked at, with weight 0, which NaN would survive.
        self.keys = torch.zeros(tuple(shape), dtype=dtype, device=device)  # [layers, R, H, capacity, head_dim]
        self.values = torch.zeros_like(self.keys)

    def load(self, rows: slice, prefix: KVCache) -> None:
        self.keys[:, rows, :, : prefix.length] = prefix.keys[:, :, :, : prefix.length]
        self.values[:, rows, :, : prefix.length] = prefix.values[:, :, :, : prefix.length]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, slot: Slot, bias: Tensor) -> Tensor:
        live_keys, live_values = self.keys[layer], self.values[layer]
        if isinstance(slot.index, int):
            live_keys[:, :, slot.index] = keys
            live_values[:, :, slot.index] = values
        else:
            live_keys.index_copy_(2, slot.index, keys[:, :, None].to(live_keys.dtype))
            live_values.index_copy_(2, slot.index, values[:, :, None].to(live_keys.dtype))
        mixed = functional.scaled_dot_product_attention(
            queries[:, :, None].to(live_keys.dtype),
            live_keys[:, :, : slot.span],
            live_values[:, :, : slot.span],
            attn_mask=bias[:, None, None, : slot.span],
        )
        return mixed.flatten(1)


class BlockedCache:
    """Blocks of 16 slots for keys and of 16 dimensions for values, so that both sums run along whole registers."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        layers, rows, heads, capacity, head_dim = shape
        self.width = BLOCK if head_dim % BLOCK == 0 else head_dim
        self.keys = torch.zeros(layers, rows, heads, capacity // BLOCK, head_dim, BLOCK, dtype=dtype)
        self.values = torch.zeros(layers, rows, heads, head_dim // self.width, capacity, self.width, dtype=dtype)
        self.attention = compiled_attention(rows, heads, head_dim)

    def load(self, rows: slice, prefix: KVCache) -> None:
        length = prefix.length
        blocks = -(-length // BLOCK)
        keys = functional.pad(prefix.keys[:, :, :, :length], (0, 0, 0, blocks * BLOCK - length))
        self.keys[:, rows, :, :blocks] = keys.view(*keys.shape[:3], blocks, BLOCK, -1).transpose(-1, -2)
        values = prefix.values[:, :, :, :length]
        values = values.view(*values.shape[:4], -1, self.width)
        self.values[:, rows, :, :, :length] = values.transpose(3, 4)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, slot: Slot, bias: Tensor) -> Tensor:
        assert isinstance(slot.index, int)
        self.keys[layer, :, :, slot.index // BLOCK, :, slot.index % BLOCK] = keys
        self.values[layer, :, :, :, slot.index] = values.view(*values.shape[:2], -1, self.width)
        return self.attention(queries, self.keys[layer], self.values[layer], bias, slot.span)


# the step


class DecodeStep:
    """One new token of every row, with the buffers for `capacity` tokens of each.

    Calls must be made in inference mode: what is compiled is compiled for it.
    """

    def __init__(
        self,
        model: Transformer,
        layout: WeightLayout,
        capacity: int,
        path: DecodePath,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        config, weight = model.config, model.tok_embeddings.weight
        self.model, self.path = model, path
        self.weights = lay_out(model, layout)
        capacity = rounded_slots(capacity, path)
        self.kernels = compiled_kernels() if path == "compiled" else EAGER
        shape = (config.n_layers, layout.rows, config.n_heads, capacity, config.head_dim)
        dtype = cache_dtype or weight.dtype
        self.cache: DecodeCache = (
            BlockedCache(shape, dtype) if path == "compiled" else StraightCache(shape, dtype, weight.device)
        )
        self.bias = torch.zeros(layout.rows, capacity, dtype=dtype, device=weight.device)
        self.graphs = Graphs(layout.rows, weight.device) if path == "graph" else None

    def begin(
        self,
        prefixes: Sequence[tuple[slice, KVCache]],  # by rows
        mask: Tensor,  # [R, padded] bool, True = real
    ) -> None:
        """Forget the last batch, and take the keys and values of the prompts of this one."""
        for rows, prefix in prefixes:
            self.cache.load(rows, prefix)
        self.bias.fill_(float("-inf"))
        self.bias[:, : mask.shape[1]].masked_fill_(mask, 0)

    def __call__(
        self,
        ids: Tensor,  # [R] int64
        positions: Tensor,  # [R] int64
        slot: int,
    ) -> Tensor:  # [R, codes] float32
        """Logits after the tokens `ids`, which are stored at `slot`; the slots before it are all filled."""
        if self.graphs is not None:
            return self.graphs(self._at_fixed_place, ids, positions, slot, rounded_slots(slot + 1, self.path))
        self.bias[:, slot] = 0
        return self.logits(ids, positions, Slot(slot, rounded_slots(slot + 1, self.path)))

    def close(self) -> None:
        """Drop the buffers: an error's traceback may hold the step itself for long."""
        self.graphs = None
        del self.cache, self.bias

    def logits(
        self,
        ids: Tensor,  # [R] int64
        positions: Tensor,  # [R] int64
        slot: Slot,
    ) -> Tensor:  # [R, codes] float32
        def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self.cache.attend(layer, queries, keys, values, slot, self.bias)

        return self.head(self.model.mixed(ids, positions, mix, self.weights.layers, self.kernels))

    def head(
        self,
        hidden: Tensor,  # [R, D]
    ) -> Tensor:  # [R, codes] float32
        return self.weights.head(hidden).float()

    def _at_fixed_place(self, ids: Tensor, positions: Tensor, slot: Tensor, span: int) -> Tensor:
        """`__call__` as a `graphs.Step`."""
        self.bias.index_fill_(1, slot, 0)
        return self.logits(ids, positions, Slot(slot, span))
