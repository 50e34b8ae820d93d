"""Attention of one new token per row to the tokens before it, norms and gates, as Triton kernels for GPUs.

Attention rotates the new token's queries and keys, stores its keys and values, and reads the slots of each row from the
row's first slot to the new token's slot, both on the device: no bias, no padding read, and one CUDA graph for all
steps. The sums of a row begin at its first slot, in parts whose number depends on the heads alone: they are the same
whatever the other rows, the padding and the number of rows are.

Importing this module imports Triton, so only `decoding` does so, where there is a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from evalsvc.models.attention import FLOAT8_MOST, attention_dtype
from evalsvc.models.layer import GATED, Activation, LayerNorm, RMSNorm, add_norm, rms_norm, rms_norm_plus_one
from evalsvc.models.rotation import Rotation

BLOCK = 32
"""Slots that a program reads at once."""
FEWEST_ROWS = 16
"""Fewest rows of a matrix that tensor cores multiply: fewer queries of a shared head are filled up with zeros."""
PROGRAMS = 8
"""Programs for a row at least, a power of two: with few heads of keys, each head's slots are split into parts."""
WARPS = 4
GATES = 1_024
"""Gates that a program computes: 16 bytes of two-byte numbers at once for each thread."""
MOST = tl.constexpr(FLOAT8_MOST)


@triton.jit  # type: ignore[untyped-decorator]
def stored(values, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute `attention.stored`."""
    if kind == tl.float8e4nv:
        wide = values.to(tl.float32)
        return (tl.minimum(tl.maximum(wide, -MOST), MOST) + (wide - wide)).to(kind)
    return values.to(kind)


@triton.jit  # type: ignore[untyped-decorator]
def turned(  # type: ignore[no-untyped-def]
    heads,  # [N, 1] or [], places of the heads' first dimensions
    angles,  # [N, 1] or [], offsets of their angles
    asked,  # [N, 1]
    cos,
    sin,
    one,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Return heads [N, WIDTH] as `rotation.turn` rotates them, to the bit."""
    dim = tl.arange(0, WIDTH)[None, :]
    values = tl.load(heads + dim, mask=asked & (dim < D), other=0.0)
    if TURNED > 0:
        kind = cos.dtype.element_ty
        inside = asked & (dim < TURNED)
        first = dim % 2 == 0 if PAIRS else dim < TURNED // 2
        other = dim ^ 1 if PAIRS else (dim + TURNED // 2) % TURNED
        place = angles + (dim // 2 if PAIRS else dim)
        others = tl.load(heads + other, mask=inside, other=0.0).to(tl.float32)
        # Rounded as torch's operators round. The compiler may fuse products with sums, which leaves products unrounded:
        # it does so to those with a 1 that it does not know.
        along = values.to(tl.float32) * tl.load(cos + place, mask=inside, other=1.0).to(tl.float32)
        across = others * tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
        along, across = along.to(kind).to(tl.float32) * one, across.to(kind).to(tl.float32) * one
        result = tl.where(first, along - across, along + across).to(values.dtype)
        values = tl.where(inside, result, values)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def attend_part(  # type: ignore[no-untyped-def]
    queries,  # [R, H, D]; of queries, new_keys and new_values each row is contiguous
    new_keys,  # [R, KV, D]
    new_values,  # [R, KV, D]
    keys,  # [R, KV, capacity, D], contiguous, as values are
    values,
    first,  # [R] int64: first slot of each row
    slot,  # [1] int64: slot of the new token
    cos,  # [R or 1, H + KV or 1, TURNED], or pairs of dimensions, as sin
    sin,
    mixed,  # [R, H, PARTS, D], the result if there is one part
    tops,  # [R, H, PARTS] float32: largest score of the part, times log2(e)
    sums,  # [R, H, PARTS] float32: sum of the weights of the part, relative to the largest
    scale,
    one,
    query_stride,
    key_stride,
    value_stride,
    capacity,
    cos_row,
    cos_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KV: tl.constexpr,
    SHARED: tl.constexpr,  # queries of a head of keys
    FILLED: tl.constexpr,  # rows of a product: 1, or a power of two from FEWEST_ROWS on
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TURNED: tl.constexpr,  # dimensions that are rotated
    PAIRS: tl.constexpr,
):
    row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, new = tl.load(first + row), tl.load(slot)
    count = tl.cdiv(tl.cdiv(new - start, PARTS), BLOCK) * BLOCK
    begin = start + part * count
    end = tl.minimum(begin + count, new)

    dim, group = tl.arange(0, WIDTH), tl.arange(0, FILLED)
    inside, asked = dim < D, group < SHARED
    cache = (row * KV + head) * capacity * D
    asking = head * SHARED + group[:, None]
    kept_as = keys.dtype.element_ty
    kind = queries.dtype.element_ty if kept_as == tl.float8e4nv else kept_as
    heads, angles = queries + row * query_stride + asking * D, row * cos_row + asking * cos_head
    query = turned(heads, angles, asked[:, None], cos, sin, one, D, WIDTH, TURNED, PAIRS).to(kind)

    heads, angles = new_keys + row * key_stride + head * D, row * cos_row + (KV * SHARED + head) * cos_head
    only = part + tl.zeros([1, 1], tl.int32)
    new_key = stored(turned(heads, angles, only >= 0, cos, sin, one, D, WIDTH, TURNED, PAIRS), kept_as)
    # No program reads this slot, so that a mask serves, which needs fewer registers than a branch.
    tl.store(keys + cache + new * D + dim[None, :], new_key, mask=inside[None, :] & (only == PARTS - 1))
    score_of_new = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), 1) * scale

    top = tl.full([FILLED], -float("inf"), tl.float32)
    total = tl.zeros([FILLED], tl.float32)
    mix = tl.zeros([FILLED, WIDTH], tl.float32)
    for offset in tl.range(begin, end, BLOCK, num_stages=3):
        slots = offset + tl.arange(0, BLOCK)
        live = slots < end
        place = cache + slots[:, None] * D + dim[None, :]
        shown = live[:, None] & inside[None, :]
        key = tl.load(keys + place, mask=shown, other=0.0)
        value = tl.load(values + place, mask=shown, other=0.0)
        if FILLED == 1:
            score = tl.sum(key.to(tl.float32) * query.to(tl.float32), 1)[None, :]
        else:
            score = tl.dot(query, tl.trans(key).to(kind), input_precision="ieee")
        score = tl.where(live[None, :], score * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight, kept = tl.exp2(score - higher[:, None]), tl.exp2(top - higher)
        mix *= kept[:, None]
        if FILLED == 1:
            mix += tl.sum(tl.trans(weight) * value.to(tl.float32), 0)[None, :]
        else:
            rounded = weight.to(kind)
            mix = tl.dot(rounded, value.to(kind), mix, input_precision="ieee")
            if kind != tl.float32:  # what rounding left of the weights, up to half a last place of the result
                mix = tl.dot((weight - rounded.to(tl.float32)).to(kind), value.to(kind), mix)
        total = total * kept + tl.sum(weight, 1)
        top = higher

    if part == PARTS - 1:
        value = stored(tl.load(new_values + row * value_stride + head * D + dim, mask=inside, other=0.0), kept_as)
        tl.store(values + cache + new * D + dim, value, mask=inside)
        higher = tl.maximum(top, score_of_new)
        weight_of_new, kept = tl.exp2(score_of_new - higher), tl.exp2(top - higher)
        mix = mix * kept[:, None] + weight_of_new[:, None] * value.to(tl.float32)[None, :]
        total = total * kept + weight_of_new
        top = higher

    query_head = (row * KV + head) * SHARED + group
    result = (query_head[:, None] * PARTS + part) * D + dim[None, :]
    if PARTS == 1:
        mix = mix / total[:, None]
    else:
        tl.store(tops + query_head * PARTS + part, top, mask=asked)
        tl.store(sums + query_head * PARTS + part, total, mask=asked)
    tl.store(mixed + result, mix.to(mixed.dtype.element_ty), mask=asked[:, None] & inside[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def join_parts(  # type: ignore[no-untyped-def]
    mixed,  # [R·H, PARTS, D] float32
    tops,  # [R·H, PARTS] float32
    sums,  # [R·H, PARTS] float32
    output,  # [R·H, D]
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    part, dim = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    top = tl.load(tops + head * PARTS + part)
    weight = tl.exp2(top - tl.max(top, 0))  # 0 for a part without slots
    total = tl.sum(tl.load(sums + head * PARTS + part) * weight, 0)
    place = (head * PARTS + part[:, None]) * D + dim[None, :]
    parts = tl.load(mixed + place, mask=(dim < D)[None, :], other=0.0)
    result = tl.sum(parts * weight[:, None], 0) / total
    tl.store(output + head * D + dim, result.to(output.dtype.element_ty), mask=dim < D)


def constants(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    """Return the constants that `attend_part` is compiled for. None depends on the number of rows."""
    group, width = heads // kv_heads, triton.next_power_of_2(head_dim)
    return {
        "D": head_dim,
        "WIDTH": width if group == 1 else max(width, FEWEST_ROWS),
        "KV": kv_heads,
        "SHARED": group,
        "FILLED": 1 if group == 1 else max(triton.next_power_of_2(group), FEWEST_ROWS),
        "PARTS": max(1, PROGRAMS >> (kv_heads - 1).bit_length()),
        "BLOCK": BLOCK,
    }


def attend_one(
    queries: Tensor,  # [R, H, head_dim]
    new_keys: Tensor,  # [R, KV, head_dim]
    new_values: Tensor,  # [R, KV, head_dim]
    keys: Tensor,  # [R, KV, capacity, head_dim] contiguous, of float32, bfloat16, float16 or float8
    values: Tensor,
    first: Tensor,  # [R] int64
    slot: Tensor,  # [1] int64
    rotation: Rotation | None = None,
    pairs: bool = False,
) -> Tensor:  # [R, H, head_dim], in the dtype of `keys`, or of `queries` if keys are float8
    """Rotate queries and new keys to the bit as `rotation.turn` does, store the new keys and values at `slot`, and
    return softmax(q·K / √head_dim)·V over each row's slots from `first` to `slot`, with scores and sums in float32 and
    one pass over the keys (Dao et al., FlashAttention, 2022). Heads that share keys multiply by tensor cores, each
    weight as a sum of two numbers of the dtype of the result."""
    rows, heads, head_dim = queries.shape
    shared = keys.shape[1]
    dtype = attention_dtype(keys.dtype, queries.dtype)
    shape = constants(heads, shared, head_dim)
    parts = shape["PARTS"]
    output = torch.empty(rows, heads, head_dim, dtype=dtype, device=keys.device)
    wide = torch.float32
    mixed = tops = sums = output
    if parts > 1:
        mixed = torch.empty(rows, heads, parts, head_dim, dtype=wide, device=keys.device)
        tops, sums = torch.empty(2, rows, heads, parts, dtype=wide, device=keys.device)
    queries, new_keys, new_values = (
        part if part.stride()[1:] == (head_dim, 1) else part.contiguous() for part in (queries, new_keys, new_values)
    )
    cos, sin = rotation or (queries, queries)
    turned_width = 0 if rotation is None else cos.shape[-1] * (2 if pairs else 1)
    around = cos.expand(rows, heads + shared, -1).stride() if rotation else (0, 0)
    # Triton launches on the current device, whichever its arguments lie on.
    with torch.cuda.device_of(keys):  # type: ignore[no-untyped-call]
        attend_part[(rows, shared, parts)](
            queries,
            new_keys,
            new_values,
            keys,
            values,
            first,
            slot,
            cos,
            sin,
            mixed,
            tops,
            sums,
            head_dim**-0.5 * LOG2_E,
            1.0,
            queries.stride(0),
            new_keys.stride(0),
            new_values.stride(0),
            keys.shape[2],
            *around[:2],
            **shape,
            TURNED=turned_width,
            PAIRS=pairs,
            num_warps=WARPS,
        )
        if parts > 1:
            join_parts[(rows * heads,)](mixed, tops, sums, output, D=head_dim, WIDTH=shape["WIDTH"], PARTS=parts)
    return output


LOG2_E = 1.4426950408889634
"""log2(e), by which scores are multiplied for powers of two."""


@triton.jit  # type: ignore[untyped-decorator]
def normed_row(  # type: ignore[no-untyped-def]
    x,  # [N, D], contiguous, as all are
    delta,
    weight,  # [D]
    bias,  # [D]
    total,  # [N, D]: x + delta
    output,
    eps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMMED: tl.constexpr,
    CENTRED: tl.constexpr,  # whether the norm is a layer norm
    ROUNDED: tl.constexpr,  # whether values are rounded before the gain
    GAIN: tl.constexpr,
    BIAS: tl.constexpr,
    MORE: tl.constexpr,  # number added to the gain
):
    dim = tl.arange(0, WIDTH)
    inside, place = dim < D, tl.program_id(0).to(tl.int64) * D + dim
    kind = x.dtype.element_ty
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if SUMMED:
        values = (values + tl.load(delta + place, mask=inside, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
        tl.store(total + place, values.to(kind), mask=inside)
    if CENTRED:
        values = tl.where(inside, values - tl.sum(values, 0) / D, 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    if ROUNDED:
        values = values.to(kind).to(tl.float32)
    if GAIN:
        values *= tl.load(weight + dim, mask=inside, other=0.0).to(tl.float32) + MORE
    if BIAS:
        values += tl.load(bias + dim, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + place, values.to(kind), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def gated_part(  # type: ignore[no-untyped-def]
    inner,  # [N, 2·width], contiguous, as the output is
    output,  # [N, width]
    width,
    NAME: tl.constexpr,  # of the activation of the gate
    BLOCK: tl.constexpr,
):
    row, dim = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, gate = dim < width, inner + 2 * row * width + dim
    kind = inner.dtype.element_ty
    x = tl.load(gate, mask=inside, other=0.0).to(tl.float32)
    if NAME == "gelu":
        x *= 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    else:  # (1 + tanh(y)) / 2 is the logistic function of 2·y
        logit = x if NAME == "silu" else 1.5957691216057308 * (x + 0.044715 * x * x * x)
        x = tl.div_rn(x, 1 + tl.exp(-logit))
    # Rounded as torch's operators round.
    result = x.to(kind).to(tl.float32) * tl.load(gate + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * width + dim, result.to(kind), mask=inside)


def add_norm_once(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Compute `layer.add_norm` in one launch, with sums in an order that depends on the width alone."""
    if not isinstance(norm, LayerNorm | RMSNorm) or torch.is_autocast_enabled(x.device.type):
        return add_norm(x, delta, norm)
    x, width, bias = x.contiguous(), x.shape[-1], getattr(norm, "bias", None)
    arithmetic = norm.arithmetic if isinstance(norm, RMSNorm) else None
    total, output = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    normed_row[(x.numel() // width,)](
        *(x, x if delta is None else delta.contiguous()),
        *(x if part is None else part for part in (norm.weight, bias)),
        *(total, output, norm.eps, width, triton.next_power_of_2(width)),
        *(delta is not None, arithmetic is None, arithmetic is rms_norm, norm.weight is not None, bias is not None),
        MORE=1.0 if arithmetic is rms_norm_plus_one else 0.0,
        num_warps=WARPS,
    )
    return total, output


def gate_once(activation: Activation) -> Activation:
    """Return an activation that takes one launch: torch's own where there is no gate."""
    name = {gate: name for name, gate in GATED.items()}.get(activation)
    if name is None:
        return activation

    def gate_and_multiply(inner: Tensor) -> Tensor:  # [R, 2·F] → [R, F]
        inner, width = inner.contiguous(), inner.shape[-1] // 2
        output = inner.new_empty(*inner.shape[:-1], width)
        grid = output.numel() // width, triton.cdiv(width, GATES)
        gated_part[grid](inner, output, width, name, GATES, num_warps=WARPS)
        return output

    return gate_and_multiply
