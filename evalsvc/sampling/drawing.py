"""The draw of one code per prompt as one Triton kernel for GPUs, imported only there; `logits.draw` is its reference.

A program draws for one prompt, so a draw depends on no other row. Values are rounded where the reference rounds them,
and sums are of float64, in an order that depends on the number of codes alone. The logarithms and exponentials of
float64 are CUDA's: as with `logits.draw(compile_noise=True)`, their last bit may differ from torch's, which turns a
draw only where two codes are nearly tied, or where a sum of probabilities nearly equals top_p.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalsvc.errors import InternalError
from evalsvc.sampling import noise
from evalsvc.spec.sampling import SamplingParams

GAMMA, MIX_1, MIX_2 = tl.constexpr(noise.GAMMA), tl.constexpr(noise.MIX_1), tl.constexpr(noise.MIX_2)
PER_POSITION = tl.constexpr(noise.CODES_PER_POSITION)
MOST_RANKED, MOST_WEIGHED = 32_768, 16_384
"""Most codes of a row among which top-k and top-p find their thresholds: a program holds the row in its registers."""


@triton.jit  # type: ignore[untyped-decorator]
def scaled(  # type: ignore[no-untyped-def]
    logits, row, rows, stride, index, inside, scale, temperature, GUIDED: tl.constexpr, WARMED: tl.constexpr
):
    """Load logits, with guidance and temperature; -inf outside of the row."""
    values = tl.load(logits + row * stride + index, mask=inside, other=-float("inf"))
    if GUIDED:
        without = tl.load(logits + (rows + row) * stride + index, mask=inside, other=0.0)
        values = without + scale * (values - without)
    if WARMED:
        values = tl.div_rn(values, tl.zeros_like(values) + temperature)
    return values


@triton.jit
def ranked(values):  # type: ignore[no-untyped-def]
    """Return whole numbers in the order of the values, from 1 on for numbers."""
    bits = tl.where(values == 0, 0.0, values).to(tl.uint32, bitcast=True)  # one zero
    return tl.where(bits >= 0x80000000, ~bits, bits | 0x80000000)


@triton.jit(do_not_specialize=["position", "top_k"])  # type: ignore[untyped-decorator]
def draw_row(  # type: ignore[no-untyped-def]
    logits,  # [B or 2·B, codes] float32, each row contiguous
    keys,  # [B] int64
    settings,  # [3] float64: guidance scale, temperature, top_p
    drawn,  # [B] int64
    finite,  # [B] bool
    rows,
    stride,
    position,
    top_k,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,  # CODES, or the next power of two
    CHUNK: tl.constexpr,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,  # temperature 0
    WARMED: tl.constexpr,  # a temperature that is not 0 or 1
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale, temperature = tl.load(settings).to(tl.float32), tl.load(settings + 1).to(tl.float32)
    lowest = tl.full([], 0, tl.uint32)  # rank of the last code that is kept
    if TOP_K or TOP_P:
        place = tl.arange(0, WIDTH)
        whole = scaled(logits, row, rows, stride, place, place < CODES, scale, temperature, GUIDED, WARMED)
        ranks = tl.where(place < CODES, ranked(whole), 0)
    if TOP_K:  # the largest rank that top_k codes reach
        for step in range(32):
            higher = lowest | (tl.full([], 0x80000000, tl.uint32) >> step)
            if tl.sum((ranks >= higher).to(tl.int32), 0) >= top_k:
                lowest = higher
    if TOP_P:  # the largest rank from which on the probabilities sum to top_p
        ranks = tl.where(ranks >= lowest, ranks, 0)
        kept = tl.where(ranks > 0, whole, -float("inf"))
        weights = tl.exp(kept.to(tl.float64) - tl.max(kept, 0).to(tl.float64))
        enough = tl.load(settings + 2) * tl.sum(weights, 0)
        nucleus = tl.full([], 0, tl.uint32)
        for step in range(32):
            higher = nucleus | (tl.full([], 0x80000000, tl.uint32) >> step)
            if tl.sum(tl.where(ranks >= higher, weights, 0.0), 0) >= enough:
                nucleus = higher
        lowest = tl.maximum(lowest, nucleus)

    lane = tl.arange(0, CHUNK)
    best, codes, bad = tl.full([CHUNK], -float("inf"), tl.float64), lane, tl.full([CHUNK], CODES, tl.int32)
    state = tl.load(keys + row).to(tl.uint64) + position.to(tl.uint64) * PER_POSITION * GAMMA
    for start in range(0, CODES, CHUNK):
        index = start + lane
        inside = index < CODES
        values = scaled(logits, row, rows, stride, index, inside, scale, temperature, GUIDED, WARMED)
        bad = tl.minimum(bad, tl.where(inside & (values != values), index, CODES))
        sums = tl.where(inside, values, -float("inf")).to(tl.float64)
        if TOP_K or TOP_P:
            sums = tl.where(ranked(values) >= lowest, sums, -float("inf"))
        if not GREEDY:
            bits = state + (index.to(tl.uint64) + 1) * GAMMA
            bits = (bits ^ (bits >> 30)) * MIX_1
            bits = (bits ^ (bits >> 27)) * MIX_2
            uniform = (((bits ^ (bits >> 31)) >> 12).to(tl.float64) + 0.5) * 2.0**-52
            sums += -tl.log(-tl.log(uniform))
        codes = tl.where(sums > best, index, codes)  # a NaN is no maximum here, and the first of equal sums is kept
        best = tl.where(sums > best, sums, best)
    most = tl.max(best, 0)
    code, first_bad = tl.min(tl.where(best == most, codes, CODES), 0), tl.min(bad, 0)
    tl.store(drawn + row, tl.where(first_bad < CODES, first_bad, code).to(tl.int64))
    tl.store(finite + row, (first_bad == CODES) & (tl.abs(most) < float("inf")))


def constants(codes: int, params: SamplingParams) -> dict[str, int]:
    """Return the constants that `draw_row` is compiled for, and the number of warps."""
    if codes > (MOST_WEIGHED if params.top_p is not None else codes if params.top_k is None else MOST_RANKED):
        raise InternalError(f"the kernel has no room for the thresholds of {codes:,} codes")
    width = triton.next_power_of_2(codes)
    warps = min(max(width // 1_024, 4), 16)
    sizes = {"CODES": codes, "WIDTH": width, "CHUNK": min(width, 64 * warps), "num_warps": warps}
    scales = {"GUIDED": params.guided, "GREEDY": params.temperature == 0, "WARMED": params.temperature not in (0, 1)}
    limits = {"TOP_K": params.top_k is not None and params.top_k < codes, "TOP_P": params.top_p is not None}
    # A product and a sum in one instruction would round once, and torch's operators round twice.
    return {**sizes, **scales, **limits, "enable_fp_fusion": False}


@functools.lru_cache(maxsize=16)
def settings_of(params: SamplingParams, device: torch.device) -> Tensor:  # [3] float64
    values = params.guidance_scale, params.temperature, params.top_p or 1.0
    return torch.tensor(values, dtype=torch.float64, device=device)


def draw_by_kernel(logits: Tensor, params: SamplingParams, keys: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """Draw as `logits.draw` does, in one launch."""
    rows, codes = len(keys), logits.shape[1]
    drawn, finite = torch.empty_like(keys), torch.empty(rows, dtype=torch.bool, device=keys.device)
    settings, top_k = settings_of(params, keys.device), params.top_k or 0
    # Triton launches on the current device, whichever its arguments lie on.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        draw_row[(rows,)](
            logits, keys, settings, drawn, finite, rows, logits.stride(0), position, top_k, **constants(codes, params)
        )
    return drawn, finite
