"""Decoding step: one token of every row, with the model's weights and cache laid out for decoding.

`DecodeStep.read` runs the prompts and loads their KVCache; each call then computes one new token of every row. The
arithmetic is that of `Layered.mixed`; the paths differ in the layout of weights, keys and values, and in the number
of kernels:

- plain: the model's weights, and SDPA over the live slots.
- packed: weights in oneDNN's layout.
- compiled: packed, keys and values in blocks of 16, and torch.compile for the functions between the products. Attention
  is a sum of products in float32, since SDPA is several times slower there for one query. Heads that share keys have
  several queries for each key, where SDPA is faster and takes keys and values as they are.
- graph: tensors never move and the attended span grows by whole spans, so that a CUDA graph of each span can be
  replayed. Where Triton runs, kernels of our own read the live slots alone and rotate, norm and gate, and one graph
  serves all.
"""

from __future__ import annotations

import functools
import gc
import importlib
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.errors import InternalError
from evalsvc.models import private
from evalsvc.models.attention import FLOAT8, KVCache, attention_dtype, grouped_attention, stored
from evalsvc.models.language_model import DecodePath, PaddedPrompts, StepShape
from evalsvc.models.layer import EAGER, GATED, Block, Kernels, Products, RMSArithmetic, RMSNorm, add_norm
from evalsvc.models.layered import Layered
from evalsvc.models.packing import Linear, int8_linear, packed_linear, plain_linear
from evalsvc.models.rotation import Rotation, turn

BLOCK = 16
"""Slots, or dimensions, that are contiguous in a compiled step: float32 lanes of the widest vector registers."""
PROBLEM_CHARACTERS = 200
"""Most characters of an error of torch.compile in the provenance."""
SPAN = 64
"""Slots by which a graph's attention grows: reads 6 % more than the live slots, for 18 graphs per image."""


@dataclass(frozen=True, eq=False)
class LaidOut:
    layers: tuple[Products, ...]
    head: Linear


def lay_out(model: Layered, shape: StepShape) -> LaidOut:
    """Return the weights in the layout of a step, from the model's attribute `packed` where that layout fits. Set
    `model.packed` to None after changing weights in place."""
    table, packed = model.output.weight, PATHS[shape.path].packed
    key = (shape.image_ids, shape.rows, packed, shape.weights, table.dtype, table.device)
    if model.packed is None or model.packed[0] != key:
        model.packed = None  # free the old layout first: both together may not fit in memory

        def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
            if shape.weights == "int8":
                return int8_linear(weight, bias)
            return packed_linear(weight, bias, shape.rows) if packed else plain_linear(weight, bias)

        layers = tuple(cast(Block, layer).products_by(linear) for layer in model.layers)
        ids = shape.image_ids
        if isinstance(ids, range) and ids.step == 1:
            head = table[ids.start : ids.stop]  # in place
        else:
            head = table[torch.tensor(list(ids), device=table.device)]
        model.packed = (key, LaidOut(layers, _head(model, head.detach(), ids, linear)))
    return cast(LaidOut, model.packed[1])


def _head(
    model: Layered,
    rows: Tensor,  # [codes, D]
    ids: range | tuple[int, ...],
    linear: Callable[[Tensor, Tensor | None], Linear],
) -> Linear:
    if model.image_head is None:
        return linear(rows, None)
    inner = linear(model.image_head.inner.weight, model.image_head.inner.bias)
    outer = linear(rows, model.image_head.biases_of(ids, model.config.vocab_size))
    return lambda hidden: outer(functional.gelu(inner(hidden)))


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
    """Return `function` compiled by torch.compile, cached per process, once for each shape, or, with `dynamic`, for all
    shapes, which is slower the less the function fixes the shapes."""
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


def compiled_add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Compute `add_norm`, in one kernel where the norm is an RMSNorm."""
    if delta is None or not isinstance(norm, RMSNorm):
        return add_norm(x, delta, norm)
    return cast(tuple[Tensor, Tensor], compiled(add_rms)(x, delta, norm.weight, norm.eps, norm.arithmetic))


def add_rms(x: Tensor, delta: Tensor, weight: Tensor, eps: float, norm: RMSArithmetic) -> tuple[Tensor, Tensor]:
    x = x + delta
    return x, norm(x, weight, eps)


def can_compile(device: str) -> bool:
    """Return whether torch.compile works, see `compiler_problem`."""
    return not compiler_problem(device)


def problem_of(works: Callable[[], bool], otherwise: str) -> str:
    """Return "" if code works on a device, by a check of the code, else `otherwise` or the check's error."""
    try:
        with torch.inference_mode():
            return "" if works() else otherwise
    except torch.OutOfMemoryError:  # no answer, which callers keep: memory may be free later
        raise
    except Exception as error:  # any missing part means that the code does not work
        return textwrap.shorten(f"{type(error).__name__}: {error}", PROBLEM_CHARACTERS)


@functools.cache
def compiler_problem(device: str) -> str:
    """Return why torch.compile does not work, or "": it needs a C++ compiler, on a GPU Triton. Takes seconds the first
    time."""

    def is_close() -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = torch.linspace(-8, 8, 64, device=device).view(2, 32)
            # Close, not equal: Triton's division on a GPU is off by up to two units in the last place.
            return torch.allclose(compiled(GATED["silu"])(values), GATED["silu"](values), rtol=1e-5, atol=1e-6)

    return problem_of(is_close, "compiled code computes other values")


@dataclass(frozen=True, eq=False)
class Slot:
    """Place of the new token."""

    index: int | Tensor
    """Number of the slot, or a tensor [1] int64 where a graph reads the number at every replay."""
    span: int
    """Number of slots that attention reads; slots after the new token have a bias of -inf."""
    first: Tensor
    """First slot of each row that is no padding, [R] int64."""
    rotation: Rotation | None = None
    """Rotation of the queries and keys given to a LiveCache; others are given rotated queries and keys."""
    pairs: bool = False
    """Argument `interleaved` of `rotation.turn`."""


class DecodeCache(Protocol):
    """Keys and values of all rows, with attention over them."""

    def load(self, rows: slice, prefix: KVCache) -> None:
        """Fill the first slots of `rows` from a cache with as many rows, or from a cache that all rows share."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, slot: Slot, bias: Tensor) -> Tensor:
        """Store one token of every row, and return the attention's output for it, [R, H·head_dim]. Queries are [R, H,
        head_dim], keys and values [R, KV, head_dim], and the bias is [R, capacity]."""


class StraightCache:
    """Cache in the layout of KVCache, for SDPA."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros: slots that are not live yet may be read with weight 0, which NaN would survive.
        self.keys = torch.zeros(tuple(shape), dtype=dtype, device=device)  # [layers, R, KV, capacity, head_dim]
        self.values = torch.zeros_like(self.keys)

    def load(self, rows: slice, prefix: KVCache) -> None:
        # A layer at a time: rounding to float8 needs copies.
        for cached, read in ((self.keys, prefix.keys), (self.values, prefix.values)):
            for layer, part in enumerate(read[:, :, :, : prefix.length]):
                cached[layer, rows, :, : prefix.length] = stored(part, cached.dtype)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, slot: Slot, bias: Tensor) -> Tensor:
        live_keys, live_values = self.keys[layer], self.values[layer]
        for live, new in ((live_keys, stored(keys, live_keys.dtype)), (live_values, stored(values, live_keys.dtype))):
            if isinstance(slot.index, int):
                live[:, :, slot.index] = new
            elif live.dtype == FLOAT8:  # which torch does not copy by an index
                live.view(torch.uint8).index_copy_(2, slot.index, new.view(torch.uint8)[:, :, None])
            else:
                live.index_copy_(2, slot.index, new[:, :, None])
        dtype = attention_dtype(live_keys.dtype, queries.dtype)
        read_keys, read_values = live_keys[:, :, : slot.span], live_values[:, :, : slot.span]
        if dtype != live_keys.dtype:
            read_keys, read_values = read_keys.to(dtype), read_values.to(dtype)
        mixed = grouped_attention(
            queries[:, :, None].to(dtype), read_keys, read_values, bias[:, None, None, : slot.span]
        )
        return mixed.flatten(1)


class LiveCache(StraightCache):
    """Cache of which a kernel on the GPU reads the live slots alone, see `single_query`."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, slot: Slot, bias: Tensor) -> Tensor:
        live, place = (self.keys[layer], self.values[layer]), (slot.first, slot.index, slot.rotation, slot.pairs)
        return attention_kernel()(queries, keys, values, *live, *place).flatten(1)


@functools.cache
def attention_kernel() -> Callable[..., Tensor]:
    """Return `single_query.attend_one`, whose module imports Triton: on a GPU alone, where torch brings it."""
    return cast(Callable[..., Tensor], importlib.import_module("evalsvc.models.single_query").attend_one)


@functools.cache
def attention_problem(
    device: str, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, cached: torch.dtype | None = None
) -> str:
    """Return why `attention_kernel` does not serve a shape on a device, or "". Takes seconds the first time."""
    cached = cached or dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {dtype}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "a GPU older than Ampere"
    if cached == FLOAT8 and capability < (8, 9):
        return "a GPU older than Ada and Hopper does not convert float8"
    if problem := compiler_problem(device):
        return problem

    def is_close() -> bool:
        made = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=made, device=device).to(dtype)

        shown, first, slot = normal(2, 2, kv_heads, 96, head_dim), torch.tensor([0, 70]), torch.tensor([80])
        new = normal(2, heads, head_dim), normal(2, kv_heads, head_dim), normal(2, kv_heads, head_dim)
        live = Slot(slot.to(device), 96, first.to(device))
        slots, bias = torch.arange(96), torch.zeros(2, 96)
        bias[(slots < first[:, None]) | (slots > slot)] = float("-inf")
        outputs: list[tuple[Tensor, ...]] = []
        for kind in (StraightCache, LiveCache):
            cache = kind((1, *shown.shape[1:]), cached, torch.device(device))
            cache.keys[0], cache.values[0] = shown
            output = cache.attend(0, *new, live, bias.to(device, dtype))
            outputs.append((output, cache.keys.float(), cache.values.float()))
        close = functools.partial(torch.allclose, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
        return all(map(close, *outputs))

    return problem_of(is_close, "the kernel computes other values than torch")


@functools.cache
def step_kernels() -> Kernels:
    """Return norms and gates of `single_query`, whose attention rotates, see `attention_kernel`."""
    module = importlib.import_module("evalsvc.models.single_query")
    return Kernels(module.add_norm_once, None, module.gate_once)


def step_problem(model: Layered) -> str:
    """Return why `step_kernels` do not serve the first layer of a model on its device, or ""."""
    block, weight = cast(Block, model.layers[0]), model.tok_embeddings.weight
    if weight.dtype == torch.float64:
        return "no kernels of a layer for torch.float64"

    def layer_of(kernels: Kernels) -> tuple[Tensor, ...]:
        x = torch.linspace(-2, 3, 2 * weight.shape[1], device=weight.device).to(weight.dtype).view(2, -1)
        slot, positions = torch.ones(1, dtype=torch.int64, device=x.device), torch.arange(5, 7, device=x.device)
        place = Slot(slot, 2, torch.zeros_like(positions), model.positions(positions, x), block.attention.interleaved)
        projected = block.attention.in_proj(x)
        queries, keys, values = block.attention.heads(projected, place.rotation, kernels)
        make_cache = LiveCache if kernels.turn is None else StraightCache
        cache = make_cache((1, 2, values.shape[1], 2, values.shape[2]), x.dtype, x.device)
        cache.keys[0, :, :, 0], cache.values[0, :, :, 0] = values, -values
        mixed = cache.attend(0, queries, keys, values, place, x.new_zeros(2, 2))
        gates = kernels.activation(block.feed_forward.activation)(torch.cat((x, x), dim=-1))
        return *kernels.add_norm(x, x, block.ffn_norm), mixed, cache.keys, gates

    def is_close() -> bool:
        close = functools.partial(torch.allclose, rtol=2e-2, atol=2e-2)
        return all(map(close, layer_of(EAGER), layer_of(step_kernels())))

    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        return problem_of(is_close, "the kernels of a layer compute other values than torch")


class BlockedCache:
    """Cache in blocks of 16 slots for keys and of 16 dimensions for values: both sums run along whole registers. Each
    head of queries has keys of its own."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        layers, rows, heads, capacity, head_dim = shape
        self.width = BLOCK if head_dim % BLOCK == 0 else head_dim
        keys = (layers, rows, heads, capacity // BLOCK, head_dim, BLOCK)
        values = (layers, rows, heads, head_dim // self.width, capacity, self.width)
        self.keys, self.values = (torch.zeros(part, dtype=dtype, device=device) for part in (keys, values))
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


Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Function from ids [R], positions [R] and a slot [1], all int64, and a span to logits [R, codes] float32."""

UNWRITTEN = -(2.0**100)
"""Value of the logits before the first replay; no model computes this value for every code of every row."""


class Graphs:
    """Step with inputs at fixed addresses: one CUDA graph per span of slots, captured when first reached; none on a
    CPU. Every call passes the step: a stored step would live until a garbage collection."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.device = device
        self.ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # All graphs share one pool: the output of a graph is read before another graph runs.
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, step: Step, ids: Tensor, positions: Tensor, slot: int, span: int) -> Tensor:
        """Return the logits of `step`, which must be the same step in every call, until the next call."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.slot.fill_(slot)
        if self.device.type != "cuda":
            return step(self.ids, self.positions, self.slot, span)
        # Streams, captures and events belong to the current device, which may differ from the tensors' device.
        with torch.cuda.device(self.device):
            is_new = span not in self.captured
            if is_new:
                self.captured[span] = self._capture(step, span)
            graph, logits = self.captured[span]
            graph.replay()
            if is_new and bool((logits == UNWRITTEN).all()):
                raise InternalError(
                    f"the CUDA graph captured for {span} slots on {self.device} is empty: its replay writes no logits; "
                    "evaluate on the first visible GPU (set CUDA_VISIBLE_DEVICES), and report this"
                )
        return logits

    def _capture(self, step: Step, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture the step after one run, which CUDA requires; the replay writes the same slots again."""
        stream, current = capture_stream(self.device), torch.cuda.current_stream()
        stream.wait_stream(current)
        # A failed capture leaves its stream current; this context restores the stream.
        with torch.cuda.stream(stream):
            step(self.ids, self.positions, self.slot, span)
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Another thread may decode images at the same time, and its synchronising calls must not break the capture.
            mode = "thread_local"
            with _no_collection(), torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode=mode):
                logits = step(self.ids, self.positions, self.slot, span)
        return graph, logits.fill_(UNWRITTEN)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend garbage collection: freeing a graph during the capture of another graph can break the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which sampling captures its graphs; replayed graphs keep its high priority. cuBLAS keeps a
    workspace for every stream, and torch cycles through 32, which could be one that must overlap with it."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@functools.cache
def decoding_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which images are decoded while others are sampled."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Way:
    """What distinguishes a path of a step from `plain`."""

    slots: int = 1
    """Multiple to which the number of slots that attention reads is rounded up."""
    kernels: Callable[[], Kernels] = lambda: EAGER
    cache: Callable[[Sequence[int], torch.dtype, torch.device], DecodeCache] = StraightCache
    """Cache of keys and values, from their shape. Heads that share keys, and float8, have a StraightCache on every
    path."""
    packed: bool = True
    """Whether weights are copied into the layout of the device's fastest product."""
    replayed: bool = False
    """Whether CUDA graphs of the step are replayed."""


PATHS: dict[DecodePath, Way] = {
    "plain": Way(packed=False),
    "packed": Way(),
    "compiled": Way(BLOCK, lambda: Kernels(compiled_add_norm, compiled(turn), compiled), BlockedCache),
    "graph": Way(slots=SPAN, replayed=True),
}
"""The paths of evalsvc's own models."""


TORCH, LIVE = "torch", "live slots"


def attention_kind(model: Layered, shape: StepShape) -> str:
    """Return `Decoding.attention`."""
    config, weight = model.config, model.tok_embeddings.weight
    device = weight.device
    if not PATHS[shape.path].replayed or device.type != "cuda":
        return TORCH
    heads = (config.n_heads, config.kv_heads, config.head_dim)
    dtype = attention_dtype(shape.cache_dtype, weight.dtype)
    problem = attention_problem(str(device), dtype, *heads, shape.cache_dtype) or step_problem(model)
    return f"{TORCH}: {problem}" if problem else LIVE


def rounded_slots(slots: int, path: DecodePath) -> int:
    """Return the number of slots of a step on this path for `slots` tokens."""
    size = PATHS[path].slots if path in PATHS else 1
    return -(-slots // size) * size


class DecodeStep:
    """Step that decodes one new token of every row. Calls must be made in inference mode, which is compiled for."""

    def __init__(self, model: Layered, shape: StepShape) -> None:
        config, weight = model.config, model.tok_embeddings.weight
        self.model, self.path, self.dtype = model, shape.path, attention_dtype(shape.cache_dtype, weight.dtype)
        self.weights = lay_out(model, shape)
        way, capacity = PATHS[shape.path], rounded_slots(shape.capacity, shape.path)
        self.kernels = way.kernels()
        dtype = shape.cache_dtype or weight.dtype
        size = (config.n_layers, shape.rows, config.kv_heads, capacity, config.head_dim)
        straight = config.kv_heads < config.n_heads or dtype == FLOAT8
        make_cache = StraightCache if straight else way.cache
        self.attention = attention_kind(model, shape)
        if self.attention == LIVE:
            make_cache, self.slots, self.kernels = LiveCache, capacity, step_kernels()  # one graph for all steps
        else:
            self.slots = way.slots
        self.cache: DecodeCache = make_cache(size, dtype, weight.device)
        self.bias = torch.zeros(shape.rows, capacity, dtype=self.dtype, device=weight.device)
        self.first = torch.zeros(shape.rows, dtype=torch.int64, device=weight.device)
        self.graphs = Graphs(shape.rows, weight.device) if way.replayed else None

    def read(self, prompts: Sequence[PaddedPrompts]) -> Tensor:
        counts = [part.rows.stop - part.rows.start for part in prompts]
        ends = [self._loaded(part).expand(count, -1) for part, count in zip(prompts, counts, strict=True)]
        masks = [part.mask.expand(count, -1) for part, count in zip(prompts, counts, strict=True)]
        self.begin([], torch.cat(masks))
        return self.head(ends[0] if len(ends) == 1 else torch.cat(ends))

    def _loaded(self, part: PaddedPrompts) -> Tensor:  # [R, D], at the ends of the prompts
        """Read and load one part; its own keys and values are freed before the next part is read."""
        cache = self.model.new_cache(part.ids.shape[0], part.ids.shape[1], self.dtype)
        hidden = self.model.hidden(part.ids, mask=part.mask, positions=part.positions, cache=cache)
        self.cache.load(part.rows, cache)
        return hidden[:, -1]

    def begin(self, prefixes: Sequence[tuple[slice, KVCache]], mask: Tensor) -> None:  # [R, padded] bool, True = real
        """Drop the last batch, and load the keys and values of this batch's prompts, given by rows."""
        for rows, prefix in prefixes:
            self.cache.load(rows, prefix)
        self.bias.fill_(float("-inf"))
        self.bias[:, : mask.shape[1]].masked_fill_(mask, 0)
        self.first.copy_(mask.shape[1] - mask.sum(1))

    def __call__(self, ids: Tensor, positions: Tensor, slot: int) -> Tensor:
        span = -(-(slot + 1) // self.slots) * self.slots
        if self.graphs is not None:
            return self.graphs(self.at_fixed_place, ids, positions, slot, span)
        self.bias[:, slot] = 0
        return self.logits(ids, positions, Slot(slot, span, self.first))

    def close(self) -> None:
        self.graphs = None
        del self.cache, self.bias

    def logits(self, ids: Tensor, positions: Tensor, slot: Slot) -> Tensor:
        def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self.cache.attend(layer, queries, keys, values, slot, self.bias)

        return self.head(self.model.mixed(ids, positions, mix, self.weights.layers, self.kernels))

    def head(self, hidden: Tensor) -> Tensor:  # [R, D] → [R, codes] float32
        return self.weights.head(hidden).float()

    def at_fixed_place(self, ids: Tensor, positions: Tensor, slot: Tensor, span: int) -> Tensor:
        if self.attention != LIVE:
            self.bias.index_fill_(1, slot, 0)
        rotation = None if self.kernels.turn else self.model.positions(positions, self.model.tok_embeddings.weight)
        pairs = cast(Block, self.model.layers[0]).attention.interleaved
        return self.logits(ids, positions, Slot(slot, span, self.first, rotation, pairs))
