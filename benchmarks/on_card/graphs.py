"""Whether a step computes the same as a CUDA graph, uncaptured and plain, in every format and on every card.

In float64 rounding turns no draw, so all codes must be equal: of prompts of every length in one bucket, across borders
of a span. The graph path on a CPU is the same step, uncaptured. In other formats a near tie may turn a code, and the
image goes on otherwise: there the logits after given codes are held to those in float64, and equal codes are counted.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from evalsvc.models import StepShape, Transformer, WeightFormat
from evalsvc.models.decoding import SPAN, LiveCache, Slot, attention_problem
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams
from on_card.kit import Kit, Row, at_most, figure, holds, left_out
from on_card.tiny_models import (
    FAMILIES,
    TEXT_ROWS,
    UNCONDITIONAL,
    codes_of,
    few_threads,
    relative_error,
    share_equal,
    text_prompts,
    tiny_model,
)

BUCKET = 128
STEPS = 40
"""Steps that are computed of given codes, from slot 32 on: across a border of a span."""
LENGTH = 130
"""Codes an image: the slots from 128 on cross two borders of a span."""
CODES = 64
GUIDANCE = 2.0

ARCHITECTURES = {
    "rotary": "default_layer_norm",
    "llama_rotary": "rms_norm",
    "head_rotary": "gain_only_layer_norm",
    "none": "no_wb_layer_norm",
}
"""Kinds of position, each with another norm."""


Way = Literal["graph", "uncaptured", "plain"]
"""How steps run: `uncaptured` is the graph path's step, launched kernel by kernel."""


@dataclass(frozen=True)
class Format:
    """In which numbers a model is sampled, and how far its logits may be from float64."""

    model: torch.dtype
    weights: WeightFormat = "plain"
    cache: Literal["float32", "bfloat16"] | None = None
    error: float = 0.0
    """Of logits against those in float64, relative."""
    share: float = 0.0
    """Of codes that must be equal to the plain path's; 0 where rounding turns more of them than can be foreseen."""

    def __str__(self) -> str:
        cache = "" if self.cache is None else f", {self.cache} cache"
        return f"{str(self.model).removeprefix('torch.')}{', int8' if self.weights == 'int8' else ''}{cache}"


FORMATS = (
    Format(torch.float64, error=1e-6, share=0.99),
    Format(torch.float32, error=1e-5),
    Format(torch.bfloat16, error=5e-2),
    Format(torch.float64, weights="int8", error=1e-6, share=0.99),
    Format(torch.float32, weights="int8", error=1e-2),
    Format(torch.bfloat16, weights="int8", error=0.1),
    Format(torch.float64, cache="float32", error=1e-5, share=0.95),
    Format(torch.float32, cache="bfloat16", error=2e-2),
)


@dataclass(frozen=True)
class Asked:
    """Which model is sampled."""

    name: str
    guided: bool
    changes: Mapping[str, Any]
    """Of the configuration."""


def _open_lm(kind: str) -> dict[str, Any]:
    return {"positional_embedding_type": kind, "model_norm": ARCHITECTURES[kind]}


PLAIN = Asked("rotary", False, _open_lm("rotary"))
SECOND_CARD = (PLAIN, replace(PLAIN, guided=True))
"""What is sampled on another card."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of attention against the plain sums in float64, relative."""


def run(kit: Kit) -> Iterator[Row]:
    """Compare codes in float64 first, then the other formats, then SDPA's back ends."""
    with few_threads(kit):
        yield from _codes(kit)
        yield from _families(kit)
        yield from _backends(kit)
        yield from _kernel(kit)


def _codes(kit: Kit) -> Iterator[Row]:
    """Compare codes and logits: every architecture in float64, one of them in every format."""
    guided = [Asked(kind, True, _open_lm(kind)) for kind in ARCHITECTURES]
    others = [Asked(name, True, changes) for name, changes in FAMILIES.items()]
    yield from _codes_in_float64(kit, kit.device, [PLAIN, *guided[: 2 if kit.small else None], *others])
    exact = tiny_model(torch.device("cpu"), torch.float64, codes=CODES)
    for weights in ("plain", "int8"):
        spec = replace(_guided(kit), path="plain", weights=weights)
        codes = codes_of(exact, _prompts(kit)[: spec.batch], spec)
        # int8 is other numbers: what it is held to has them too.
        logits = _stepped_logits(exact, "plain", Format(torch.float64, weights))
        for form in FORMATS:
            if form.weights == weights:
                yield from _format(kit, form, logits, codes)
                kit.release()


def _families(kit: Kit) -> Iterator[Row]:
    """Hold the logits of the other families' steps to those in float64: on a card by the kernel for one query."""
    for name, changes in FAMILIES.items():
        exact = tiny_model(torch.device("cpu"), torch.float64, codes=CODES, changes=changes)
        logits = _stepped_logits(exact, "plain", Format(torch.float64))
        for form in (form for form in FORMATS[1:3] if not kit.small or form.model == torch.bfloat16):
            tried = kit.touched(tiny_model(kit.device, form.model, codes=CODES, changes=changes))
            error = relative_error(_stepped_logits(tried, "graph", form), logits)
            yield at_most(f"{name}, {form}: logits, graph to float64", error, form.error)
            kit.release()


def run_second_card(kit: Kit) -> Iterator[Row]:
    """Sample on a card that is not the current one; without any card, on the CPU."""
    if not kit.on_card or torch.cuda.device_count() < 2:
        yield left_out("a second card", f"{torch.cuda.device_count()} CUDA cards here")
        if not kit.on_card:  # on the only card, `graphs` has asked the same
            with few_threads(kit):
                yield from _codes_in_float64(kit, kit.device, SECOND_CARD)
        return
    current = torch.cuda.current_device()
    other = torch.device("cuda", next(index for index in range(torch.cuda.device_count()) if index != current))
    with few_threads(kit):
        yield from _codes_in_float64(kit, other, SECOND_CARD)
    yield holds(f"{other} is not made the current card", torch.cuda.current_device() == current)
    with torch.cuda.device(other):
        torch.cuda.empty_cache()


def _prompts(kit: Kit) -> list[Prompt]:
    """Prompts of all lengths of the bucket, so that padding is 0 to 127 tokens."""
    return text_prompts([1, 2, 3, 64, 65, 126, 127, 128] if kit.small else range(1, BUCKET + 1))


def _spec(kit: Kit, guided: bool, length: int = LENGTH) -> SamplerSpec:
    params = SamplingParams(guidance_scale=GUIDANCE if guided else 1.0)
    image_ids = range(TEXT_ROWS, TEXT_ROWS + CODES)
    # Two batches: a graph is replayed for another batch than the one that it was captured with.
    batch = 4 if kit.small else 64
    return SamplerSpec(image_ids, length, params, batch, UNCONDITIONAL, BUCKET)


def _codes_in_float64(kit: Kit, device: torch.device, cases: Sequence[Asked]) -> Iterator[Row]:
    prompts, cpu = _prompts(kit), torch.device("cpu")
    borders = (BUCKET + LENGTH - 2) // SPAN - BUCKET // SPAN
    yield figure(f"{len(prompts)} prompts, {LENGTH} codes: borders of a span crossed", borders)
    for asked in cases:
        models = {
            where: tiny_model(where, torch.float64, codes=CODES, changes=asked.changes)
            for where in dict.fromkeys((device, cpu))
        }
        tried = kit.touched(tiny_model(device, torch.float64, codes=CODES, changes=asked.changes))
        spec = _spec(kit, asked.guided)
        graph = codes_of(tried, prompts, replace(spec, path="graph"))
        plain = codes_of(models[device], prompts, replace(spec, path="plain"))
        name = f"{asked.name}{', guided' if asked.guided else ''}"
        yield _all_equal(f"{name}: graph = plain", graph, plain)
        uncaptured = codes_of(models[cpu], prompts, replace(spec, path="graph"))
        yield _all_equal(f"{name}: graph = uncaptured, CPU", graph, uncaptured)
        del models, tried
        kit.release()


def _all_equal(what: str, found: Tensor, expected: Tensor) -> Row:
    share = share_equal(found, expected)
    distinct = len(found.unique())
    # Codes that are all alike would be equal for another reason.
    return holds(what, share == 1 and distinct > CODES // 2, f"{share:.2%} of {found.numel()}", distinct=distinct)


def _guided(kit: Kit) -> SamplerSpec:
    """Return what each format is sampled with; in small without a border of a span, which float64 crosses."""
    return _spec(kit, guided=True, length=24 if kit.small else LENGTH)


def _format(
    kit: Kit,
    form: Format,
    exact_logits: Tensor,  # [STEPS, rows, CODES], of the plain path in float64
    exact_codes: Tensor,  # of the plain path in float64
) -> Iterator[Row]:
    """Compare the ways of a step in one format with each other and with float64."""
    spec = replace(_guided(kit), weights=form.weights, cache_dtype=form.cache)
    prompts = _prompts(kit)[: spec.batch]
    model = tiny_model(kit.device, form.model, codes=CODES)
    tried = kit.touched(tiny_model(kit.device, form.model, codes=CODES))
    ways: tuple[Way, ...] = ("graph", "uncaptured", "plain")
    logits = {way: _stepped_logits(tried if way == "graph" else model, way, form) for way in ways}
    for way in ways:
        error = relative_error(kit.touched(logits[way]), exact_logits)
        yield at_most(f"{form}: logits, {way} to float64", error, form.error)
    what, same = f"{form}: logits, graph and uncaptured", share_equal(logits["graph"], logits["uncaptured"])
    yield at_most(what, relative_error(logits["graph"], logits["uncaptured"]), form.error, equal=same)
    difference = float((logits["graph"] - logits["plain"]).abs().max())
    yield figure(f"{form}: logits, graph to plain, most", difference, "nats")
    graph = codes_of(tried, prompts, replace(spec, path="graph"))
    plain = codes_of(model, prompts, replace(spec, path="plain"))
    what, share = f"{form}: equal codes, graph and plain", share_equal(graph, plain)
    if form.share:
        yield holds(what, share >= form.share, f"{share:.4f}", least=form.share)
    else:
        yield figure(what, share)
    yield figure(f"{form}: equal codes, graph and float64", share_equal(graph, exact_codes))


@torch.inference_mode()
def _stepped_logits(model: Transformer, way: Way, form: Format) -> Tensor:  # [STEPS, rows, CODES] on the CPU
    """Return what each step computes after prompts of several lengths, all ways given the same codes."""
    device = model.tok_embeddings.weight.device
    # As many rows as an int8 product on a card asks for.
    prompts = text_prompts(range(1, 33))
    padded = len(prompts)
    cache_dtype = None if form.cache is None else getattr(torch, form.cache)
    rows, path = range(TEXT_ROWS, TEXT_ROWS + CODES), "plain" if way == "plain" else "graph"
    step = model.decoding(StepShape(len(prompts), rows, padded + STEPS, path, form.weights, cache_dtype))
    ids = torch.tensor([[*[0] * (padded - len(prompt.ids)), *prompt.ids] for prompt in prompts], device=device)
    lengths = torch.arange(1, padded + 1, device=device)  # [rows]
    slots = torch.arange(padded, device=device)
    padding = (padded - lengths)[:, None]  # [rows, 1]
    prefix = model.new_cache(len(prompts), padded, cache_dtype)
    model.hidden(ids, mask=slots >= padding, positions=(slots - padding).clamp(min=0), cache=prefix)
    step.begin([(slice(0, len(prompts)), prefix)], slots >= padding)
    codes = torch.randint(CODES, (STEPS, padded), generator=torch.Generator().manual_seed(0)).to(device)
    logits = []
    for number in range(STEPS):
        arguments, slot = (TEXT_ROWS + codes[number], lengths + number), padded + number
        if way == "uncaptured":
            place = torch.tensor([slot], device=device)
            found = step.at_fixed_place(*arguments, place, -(-(slot + 1) // step.slots) * step.slots)
        else:
            found = step(*arguments, slot)
        logits.append(found.cpu())
    model.packed = None
    return torch.stack(logits)


def _backends(kit: Kit) -> Iterator[Row]:
    """Compare each back end of SDPA with the plain sums in float64: one query with a mask, and a prompt without."""
    generator = torch.Generator().manual_seed(0)
    rows, heads, slots, head_dim = (2, 2, 128, 64) if kit.small else (4, 8, 1_088, 64)
    shape = rows, heads, slots, head_dim
    queries, keys, values = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    bias = torch.zeros(rows, 1, 1, slots, dtype=torch.float64)
    for row in range(rows):
        bias[row, ..., : row * slots // (2 * rows)] = float("-inf")
    cases: dict[str, tuple[Tensor, Tensor | None]] = {
        "one query": (queries[:, :, -1:], bias),
        "prompt": (queries, None),
    }
    for (case, (asked, mask)), dtype in itertools.product(cases.items(), ATTENTION_ERRORS):
        exact = _attention(asked.to(dtype).double(), keys.to(dtype).double(), values.to(dtype).double(), mask)
        inputs = asked.to(kit.device, dtype), keys.to(kit.device, dtype), values.to(kit.device, dtype)
        mask_there = None if mask is None else mask.to(kit.device, dtype)
        for name, backend in BACKENDS.items():
            what = f"SDPA {name}, {case}, {str(dtype).removeprefix('torch.')}"
            found = _with_backend(backend, inputs, mask_there)
            if found is None:
                yield left_out(what, "this device does not offer it")
            else:
                yield at_most(what, relative_error(kit.touched(found), exact), ATTENTION_ERRORS[dtype])


KERNEL_SHAPES = ((16, 16, 128), (8, 2, 128), (8, 1, 64), (4, 4, 80))
"""Heads of queries and of keys, and their width."""
KERNEL_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Of the kernel for one query against the plain sums in float64, relative: twice a rounding of the result and more."""


def _kernel(kit: Kit) -> Iterator[Row]:
    """Compare the kernel that reads the live slots with the plain sums, rows from different first slots on."""
    if not kit.on_card:
        yield left_out("attention by the kernel for one query", "it is compiled for a card")
        return
    for (heads, kv_heads, width), dtype in itertools.product(KERNEL_SHAPES, KERNEL_ERRORS):
        what = f"kernel, {heads} heads of {kv_heads} × {width}, {str(dtype).removeprefix('torch.')}"
        if problem := attention_problem(str(kit.device), dtype, heads, kv_heads, width):
            yield holds(f"{what}: it runs", False, problem)
            continue
        yield at_most(what, _kernel_error(kit, heads, kv_heads, width, dtype), KERNEL_ERRORS[dtype])


@torch.inference_mode()
def _kernel_error(kit: Kit, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> float:
    generator, rows, slots = torch.Generator().manual_seed(0), 5, 640

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    cache = LiveCache((1, rows, kv_heads, slots, width), dtype, kit.device)
    keys, values = normal(rows, kv_heads, slots, width), normal(rows, kv_heads, slots, width)
    cache.keys[0], cache.values[0] = keys, values
    queries, new_keys, new_values = (
        normal(rows, heads, width),
        normal(rows, kv_heads, width),
        normal(rows, kv_heads, width),
    )
    new, first = 600, torch.tensor([0, 1, 64, 333, 599])
    slot = Slot(torch.tensor([new], device=kit.device), slots, first.to(kit.device))
    bias = torch.zeros(rows, slots, dtype=dtype, device=kit.device)
    there = (part.to(kit.device) for part in (queries, new_keys, new_values))
    found = cache.attend(0, *there, slot, bias).view(rows, heads, width)
    keys[:, :, new], values[:, :, new] = new_keys, new_values
    numbers = torch.arange(slots)
    dead = (numbers < first[:, None]) | (numbers > new)
    mask = torch.zeros(rows, 1, 1, slots, dtype=torch.float64).masked_fill(dead[:, None, None], float("-inf"))
    wide = [part.double().repeat_interleave(heads // kv_heads, 1) for part in (keys, values)]
    exact = _attention(queries.double()[:, :, None], *wide, mask)[:, :, 0]
    return relative_error(kit.touched(found), exact)


def _with_backend(
    backend: SDPBackend, inputs: tuple[Tensor, Tensor, Tensor], mask: Tensor | None
) -> Tensor | None:  # as the queries
    with warnings.catch_warnings(), sdpa_kernel(backend), torch.inference_mode():
        warnings.simplefilter("ignore")  # each reason why a back end is not offered is a warning
        try:
            return functional.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=mask is None)
        except RuntimeError as error:
            if "No available kernel" in str(error) or "no viable backend" in str(error).lower():
                return None
            raise


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q·K / √head_dim)·V as it is written, causal without a mask."""
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if mask is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    else:
        scores = scores + mask
    return scores.softmax(-1) @ values
