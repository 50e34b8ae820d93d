"""The step that draws one token of every row: the model laid out once for it, and only for it.

`DecodeStep.begin` takes what the prompts left in a KVCache; each call then computes one new token of every row. The
arithmetic is `Transformer.hidden`'s; what differs is where weights, keys and values lie and how many kernels run:

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
from evalsvc.models.open_lm import GemmaGeGLU, RMSNorm, SwiGLU, Transformer, rms_norm, rotate_halves, rotate_pairs
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
class LayerWeights:
    """The four products of a layer; `activation` stands between the last two."""

    into_attention: Linear
    out_of_attention: Linear
    into_feed_forward: Linear
    out_of_feed_forward: Linear
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LaidOut:
    """All products of a step."""

    layers: tuple[LayerWeights, ...]
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
    layers = tuple(_layer(layer, layout) for layer in model.layers)
    return LaidOut(layers, layout.linear(model.output.weight[_index(layout.image_ids, model)].detach()))


def _layer(layer: nn.Module, layout: WeightLayout) -> LayerWeights:
    attention, feed_forward = cast(Any, layer.attention), layer.feed_forward
    linear = layout.linear
    attended = linear(attention.in_proj.weight), linear(attention.out_proj.weight)
    if isinstance(feed_forward, SwiGLU):
        return LayerWeights(*attended, linear(feed_forward.w12.weight), linear(feed_forward.w3.weight), silu_gated)
    if isinstance(feed_forward, GemmaGeGLU):
        gate, up, down = feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj
        into = linear(torch.cat((gate.weight, up.weight)), torch.cat((gate.bias, up.bias)))
        return LayerWeights(*attended, into, linear(down.weight, down.bias), gelu_gated)
    first, last = cast(Any, feed_forward)[0], cast(Any, feed_forward)[2]
    return LayerWeights(*attended, linear(first.weight), linear(last.weight), gelu)


def _index(image_ids: Sequence[int], model: Transformer) -> slice | Tensor:
    """A slice reads the table in place; an index copies it."""
    if isinstance(image_ids, range) and image_ids.step == 1:
        return slice(image_ids.start, image_ids.stop)
    return torch.tensor(list(image_ids), device=model.output.weight.device)


# what lies between the products


def silu_gated(inner: Tensor) -> Tensor:  # [R, 2·F] → [R, F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu(inner: Tensor) -> Tensor:  # [R, F]
    return functional.gelu(inner)


def gelu_gated(inner: Tensor) -> Tensor:  # [R, 2·F] → [R, F]
    gate, up = inner.chunk(2, dim=-1)
    return functional.gelu(gate) * up


def turned_heads(
    queries: Tensor,  # [R, H·head_dim]
    keys: Tensor,
    values: Tensor,
    cos: Tensor,  # [R or 1, 1, 1, 1 or H, head_dim or half of it]
    sin: Tensor,
    head_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # each [R, H, head_dim]
    """`Attention.split` for one token a row, after the norms."""
    both = torch.stack((queries, keys), dim=1).view(len(queries), 1, 2, -1, head_dim)  # [R, 1, 2, H, head_dim]
    both = (rotate_pairs if interleaved else rotate_halves)(both, (cos, sin)).to(values.dtype)
    return both[:, 0, 0], both[:, 0, 1], values.view(len(values), -1, head_dim)


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


@dataclass(frozen=True, eq=False)
class Kernels:
    """The functions above as they are, or compiled."""

    add_rms: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    turned_heads: Callable[..., tuple[Tensor, Tensor, Tensor]]
    attention: Callable[[int, int, int], Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]]
    activation: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]


def add_rms(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + delta
    return x, rms_norm(x, weight, eps)


EAGER = Kernels(add_rms, turned_heads, lambda rows, heads, head_dim: blocked_attention, lambda activation: activation)


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
    return Kernels(compiled(add_rms), compiled(turned_heads), compiled_attention, compiled)


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

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, kernels: Kernels) -> None:
        layers, rows, heads, capacity, head_dim = shape
        self.width = BLOCK if head_dim % BLOCK == 0 else head_dim
        self.keys = torch.zeros(layers, rows, heads, capacity // BLOCK, head_dim, BLOCK, dtype=dtype)
        self.values = torch.zeros(layers, rows, heads, head_dim // self.width, capacity, self.width, dtype=dtype)
        self.attention = kernels.attention(rows, heads, head_dim)

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
            BlockedCache(shape, dtype, self.kernels)
            if path == "compiled"
            else StraightCache(shape, dtype, weight.device)
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
        model = self.model
        x: Tensor = model.post_embed_norm(model.tok_embeddings(ids))  # [R, D]
        rotation = model.positions.turn(positions[:, None], x)
        delta: Tensor | None = None
        for index, (layer, weights) in enumerate(zip(model.layers, self.weights.layers, strict=True)):
            x, normed = self._add_norm(x, delta, cast(nn.Module, layer.attention_norm))
            heads = self._heads(weights.into_attention(normed), layer.attention, rotation)
            mixed = self.cache.attend(index, *heads, slot, self.bias)
            x, normed = self._add_norm(x, weights.out_of_attention(mixed.to(x.dtype)), cast(nn.Module, layer.ffn_norm))
            activation = self.kernels.activation(weights.activation)
            delta = weights.out_of_feed_forward(activation(weights.into_feed_forward(normed)))
        return self.head(self._add_norm(x, delta, model.norm)[1])

    def head(
        self,
        hidden: Tensor,  # [R, D]
    ) -> Tensor:  # [R, codes] float32
        return self.weights.head(hidden).float()

    def _at_fixed_place(self, ids: Tensor, positions: Tensor, slot: Tensor, span: int) -> Tensor:
        """`__call__` as a `graphs.Step`."""
        self.bias.index_fill_(1, slot, 0)
        return self.logits(ids, positions, Slot(slot, span))

    def _add_norm(self, x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        if delta is not None and isinstance(norm, RMSNorm):
            return self.kernels.add_rms(x, delta, norm.weight, norm.eps)
        x = x if delta is None else x + delta
        return x, norm(x)

    def _heads(
        self,
        projected: Tensor,  # [R, 3·H·head_dim]
        attention: Any,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # each [R, H, head_dim]
        if rotation is None:
            queries, keys, values = attention.split(projected[:, None], None)
            return queries[:, :, 0], keys[:, :, 0], values[:, :, 0]
        queries, keys, values = projected.chunk(3, dim=-1)
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return self.kernels.turned_heads(queries, keys, values, *rotation, attention.head_dim, attention.interleaved)
