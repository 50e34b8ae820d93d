"""Decoding step: one token of every row, with the model's weights and cache laid out for decoding.

`DecodeStep.read` runs the prompts and loads their KVCache; each call then computes one new token of every row. The
arithmetic is that of `Transformer.mixed`; the paths differ in the layout of weights, keys and values, and in the number
of kernels:

- plain: the model's weights, and SDPA over the live slots.
- packed: weights in oneDNN's layout.
- compiled: packed, keys and values in blocks of 16, and torch.compile for the functions between the products. Attention
  is a sum of products in float32, since SDPA is several times slower there for one query. Heads that share keys have
  several queries for each key, where SDPA is faster and takes keys and values as they are.
- graph: tensors never move and the attended span grows by whole spans, so that a CUDA graph of each span can be
  replayed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models import private
from evalsvc.models.attention import grouped_attention
from evalsvc.models.feed_forward import silu_gated
from evalsvc.models.graphs import Graphs
from evalsvc.models.kv_cache import KVCache
from evalsvc.models.language_model import DecodePath, PaddedPrompts
from evalsvc.models.layer import EAGER, Block, Kernels, Products, add_norm
from evalsvc.models.layered import Layered
from evalsvc.models.norms import RMSArithmetic, RMSNorm
from evalsvc.models.packing import Linear, WeightFormat, int8_linear, packed_linear, plain_linear
from evalsvc.models.rotation import turn

BLOCK = 16
"""Slots, or dimensions, that are contiguous in a compiled step: float32 lanes of the widest vector registers."""
SPAN = 64
"""Slots by which a graph's attention grows: reads 6 % more than the live slots, for 18 graphs per image."""


def rounded_slots(slots: int, path: DecodePath) -> int:
    """Return the number of slots of a step on this path for `slots` tokens."""
    size = {"compiled": BLOCK, "graph": SPAN}.get(path, 1)
    return -(-slots // size) * size


# weights


@dataclass(frozen=True, eq=False)
class LaidOut:
    """Linear products of a step."""

    layers: tuple[Products, ...]
    head: Linear


@dataclass(frozen=True)
class WeightLayout:
    """Layout of a model's weights for decoding, the key of the cached layout."""

    image_ids: range | tuple[int, ...]
    """Rows of the head."""
    rows: int
    """Number of sequences in a step, for which the layout is made."""
    packed: bool
    weights: WeightFormat = "plain"

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        if self.weights == "int8":
            return int8_linear(weight, bias)
        return packed_linear(weight, bias, self.rows) if self.packed else plain_linear(weight, bias)


def lay_out(model: Layered, layout: WeightLayout) -> LaidOut:
    """Return the model's weights in this layout, from the model's cache where the cached layout fits.

    The cache is an attribute of the model, so that shards share the weights. Set `model.packed` to None after changing
    weights in place.
    """
    weight = model.output.weight
    key = (layout, weight.dtype, weight.device)
    if model.packed is None or model.packed[0] != key:
        model.packed = None  # free the old layout first: both together may not fit in memory
        model.packed = (key, _make(model, layout))
    return cast(LaidOut, model.packed[1])


def _make(model: Layered, layout: WeightLayout) -> LaidOut:
    layers = tuple(_products(cast(Block, layer), layout) for layer in model.layers)
    return LaidOut(layers, layout.linear(model.output.weight[_index(layout.image_ids, model)].detach()))


def _products(layer: Block, layout: WeightLayout) -> Products:
    linear, attention, feed_forward = layout.linear, layer.attention, layer.feed_forward
    return Products(
        linear(attention.in_proj.weight, attention.in_proj.bias),
        linear(attention.out_proj.weight, attention.out_proj.bias),
        linear(*feed_forward.parameters_into()),
        linear(*feed_forward.parameters_out()),
    )


def _index(image_ids: Sequence[int], model: Layered) -> slice | Tensor:
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
    """Compute softmax(q·K / √head_dim)·V over the first `span` slots, in float32 at least."""
    wide = torch.promote_types(keys.dtype, torch.float32)
    scores = (queries.to(wide)[:, :, None, :, None] * keys[:, :, : span // BLOCK].to(wide)).sum(3).flatten(2)
    weights = (scores * queries.shape[-1] ** -0.5 + bias[:, None, :span].to(wide)).softmax(-1)
    mixed: Tensor = (weights[:, :, None, :, None] * values[:, :, :, :span].to(wide)).sum(3)
    return mixed.flatten(1)


@functools.cache
def compiled(function: Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """Return `function` compiled by torch.compile, cached per process; each shape is compiled once.

    With `dynamic`, one compilation serves all shapes; it is slower the less the function fixes the shapes.
    """
    # Each dtype, architecture and batch is another compilation, and a worker may see many.
    private.allow_recompilations(64)
    # A Dask worker must not fork compiler processes.
    return torch.compile(function, dynamic=dynamic, fullgraph=True, options={"compile_threads": 1})


@functools.cache
def compiled_attention(rows: int, heads: int, head_dim: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
    """Return `blocked_attention` compiled for all spans of one batch shape, with the fixed sizes as constants."""

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
    """Compute `add_norm`, in one kernel where the norm is an RMSNorm."""
    if delta is None or not isinstance(norm, RMSNorm):
        return add_norm(x, delta, norm)
    added: tuple[Tensor, Tensor] = compiled(add_rms)(x, delta, norm.weight, norm.eps, norm.arithmetic)
    return added


def add_rms(x: Tensor, delta: Tensor, weight: Tensor, eps: float, norm: RMSArithmetic) -> tuple[Tensor, Tensor]:
    x = x + delta
    return x, norm(x, weight, eps)


@functools.cache
def can_compile(device: str) -> bool:
    """Return whether torch.compile works: it needs a C++ compiler, on a GPU Triton. Takes seconds the first time."""
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            ones = torch.ones(2, 32, device=device)
            return bool(torch.equal(compiled(silu_gated)(ones), silu_gated(ones)))
    except Exception:  # any missing part means that compiling does not work
        return False


# keys and values


class DecodeCache(Protocol):
    """Keys and values of all rows, with attention over them."""

    def load(self, rows: slice, prefix: KVCache) -> None:
        """Fill the first slots of `rows` from a cache with as many rows, or from a cache that all rows share."""

    def attend(
        self,
        layer: int,
        queries: Tensor,  # [R, H, head_dim]
        keys: Tensor,  # [R, KV, head_dim]
        values: Tensor,  # [R, KV, head_dim]
        slot: Slot,
        bias: Tensor,  # [R, capacity]
    ) -> Tensor:  # [R, H·head_dim]
        """Store one token of every row, and return the attention's output for it."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Place of the new token."""

    index: int | Tensor
    """Number of the slot, or a tensor [1] int64 where a graph reads the number at every replay."""
    span: int
    """Number of slots that attention reads; slots after the new token have a bias of -inf."""


class StraightCache:
    """Cache in the layout of KVCache, for SDPA."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros: slots that are not live yet may be read with weight 0, which NaN would survive.
        self.keys = torch.zeros(tuple(shape), dtype=dtype, device=device)  # [layers, R, KV, capacity, head_dim]
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
        mixed = grouped_attention(
            queries[:, :, None].to(live_keys.dtype),
            live_keys[:, :, : slot.span],
            live_values[:, :, : slot.span],
            bias[:, None, None, : slot.span],
        )
        return mixed.flatten(1)


class BlockedCache:
    """Cache in blocks of 16 slots for keys and of 16 dimensions for values: both sums run along whole registers.

    Each head of queries has keys of its own.
    """

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
    """Step that decodes one new token of every row, with buffers for `capacity` tokens per row.

    Calls must be made in inference mode, since functions are compiled for it.
    """

    def __init__(
        self,
        model: Layered,
        layout: WeightLayout,
        capacity: int,
        path: DecodePath,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        config, weight = model.config, model.tok_embeddings.weight
        self.model, self.path, self.cache_dtype = model, path, cache_dtype
        self.weights = lay_out(model, layout)
        capacity = rounded_slots(capacity, path)
        self.kernels = compiled_kernels() if path == "compiled" else EAGER
        shape = (config.n_layers, layout.rows, config.kv_heads, capacity, config.head_dim)
        dtype = cache_dtype or weight.dtype
        blocked = path == "compiled" and config.kv_heads == config.n_heads
        self.cache: DecodeCache = BlockedCache(shape, dtype) if blocked else StraightCache(shape, dtype, weight.device)
        self.bias = torch.zeros(layout.rows, capacity, dtype=dtype, device=weight.device)
        self.graphs = Graphs(layout.rows, weight.device) if path == "graph" else None

    def read(
        self,
        prompts: Sequence[PaddedPrompts],  # together for all rows
    ) -> Tensor:  # [rows, codes] float32
        """Drop the last batch, run this batch's prompts, and return the logits of the first code.

        A prompt that several rows share is run once.
        """
        ends, masks, prefixes = [], [], []
        for part in prompts:
            rows = part.rows.stop - part.rows.start
            cache = self.model.new_cache(part.ids.shape[0], part.ids.shape[1], self.cache_dtype)
            hidden = self.model.hidden(part.ids, mask=part.mask, positions=part.positions, cache=cache)
            ends.append(hidden[:, -1].expand(rows, -1))
            masks.append(part.mask.expand(rows, -1))
            prefixes.append((part.rows, cache))
        self.begin(prefixes, torch.cat(masks))
        return self.head(ends[0] if len(ends) == 1 else torch.cat(ends))

    def begin(
        self,
        prefixes: Sequence[tuple[slice, KVCache]],  # by rows
        mask: Tensor,  # [R, padded] bool, True = real
    ) -> None:
        """Drop the last batch, and load the keys and values of this batch's prompts."""
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
        """Return the logits after the tokens `ids`, which are stored at `slot`; all slots before `slot` are filled."""
        if self.graphs is not None:
            return self.graphs(self._at_fixed_place, ids, positions, slot, rounded_slots(slot + 1, self.path))
        self.bias[:, slot] = 0
        return self.logits(ids, positions, Slot(slot, rounded_slots(slot + 1, self.path)))

    def close(self) -> None:
        """Drop the buffers, since an error's traceback may keep the step alive for long."""
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
        self.bias.index_fill_(1, slot, 0)
        return self.logits(ids, positions, Slot(slot, span))
