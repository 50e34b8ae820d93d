"""Run the kernels of `evalsvc.models.single_query` in Triton's interpreter, or compile them for GPUs without one.

A process of its own: it needs Triton, which torch for CPUs does not bring, and interprets all kernels. Prints JSON.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from gpu_code import CHIPS, compiled_for
from torch import nn
from torch.nn import functional
from triton.runtime import interpreter

from evalsvc.models import Transformer, decoding, single_query
from evalsvc.models.attention import FLOAT8, FLOAT8_MOST, stored
from evalsvc.models.layer import GATED, PLAIN, RMS_NORMS, LayerNorm, RMSNorm, add_norm
from evalsvc.models.rotation import turn
from evalsvc.models.single_query import attend_one
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.spec.model_config import ModelConfig

NAMES = {tl.float8e4nv: FLOAT8, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16, tl.float32: torch.float32}


def convert(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
    """Convert by torch, to the nearest number as a GPU does. Triton's interpreter cuts off what bfloat16 lacks, drops a
    carry in float8 (1.96 becomes 1), and reads its NaN as 480."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    converted = torch.from_numpy(flat.copy()).view(NAMES[given]).float().to(NAMES[wanted])
    bits = converted.view(torch.uint8).numpy().view(f"uint{wanted.primitive_bitwidth}")
    return bits.reshape(values.shape)


def dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
    """Multiply in float32, which holds products of two bfloat16 numbers: the interpreter multiplies their bits."""
    wide = (
        interpreter.TensorHandle(convert(part.data, part.dtype.scalar, tl.float32, None).view(np.float32), tl.float32)
        for part in (a, b)
    )
    return BY_TRITON(builder, *wide, *others)


BY_TRITON, interpreter._convert_float = interpreter.InterpreterBuilder.create_dot, convert
interpreter.InterpreterBuilder.create_dot = dot

SHAPES = [(4, 4, 64), (5, 5, 80), (6, 3, 64), (8, 1, 64), (12, 2, 48), (20, 1, 80), (32, 4, 32)]
"""Heads of queries and of keys, and dimensions of a head."""
KINDS = [(kind, kind) for kind in (torch.float32, torch.bfloat16, torch.float16)]
KINDS += [(torch.bfloat16, FLOAT8)]
"""Dtypes of the queries, and of cached keys and values."""
CAPACITY = 192
SLOT = torch.tensor([71])
ROTATIONS = [(64, 64, False, False), (80, 16, False, False), (64, 64, False, True), (48, 48, True, False)]
"""Dimensions of a head, those that are rotated, whether by pairs, and whether by the number of the head."""


def named(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, cached: torch.dtype) -> str:
    kind = str(dtype)[6:] if cached == dtype else f"{str(cached)[6:]} as {str(dtype)[6:]}"
    return f"{heads}/{kv_heads} heads of {dim}, {kind}"


def drawn(
    rows: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, kept: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Return queries, new keys, new values, and cached keys and values. The queries are a part of a wider tensor, as a
    model's are."""
    made = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made).to(dtype)

    both = normal(rows, heads + kv_heads, dim)
    both[0, heads, 0], both[0, heads, 1] = 2 * FLOAT8_MOST, -2 * FLOAT8_MOST  # which float8 does not have
    both[0, :heads, :2] = 2**-9
    cached = stored(normal(2, rows, kv_heads, CAPACITY, dim), kept)
    return both[:, :heads], both[:, heads:], normal(rows, kv_heads, dim), cached[0], cached[1]


def errors() -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the largest error of each shape and dtype, relative where the reference is above 1, and by how much more a
    result is off than the reference's own rounding to the dtype: torch's attention over all slots in float32, with a
    bias. Slots from the new token's on are NaN before."""
    first = torch.tensor([0, 7, 40])
    for heads, kv_heads, dim in SHAPES:
        for dtype, kept in KINDS:
            worst, more = 0.0, 0.0
            for slot in (40, 64, 71, 136, CAPACITY - 1):
                queries, new_keys, new_values, keys, values = drawn(3, heads, kv_heads, dim, dtype, kept)
                rounded = [stored(new, kept) for new in (new_keys, new_values)]
                whole = [cached.clone() for cached in (keys, values)]
                for cached, before, new in zip((keys, values), whole, rounded, strict=True):
                    cached[:, :, slot:] = float("nan")
                    before[:, :, slot] = new
                found = attend_one(queries, new_keys, new_values, keys, values, first, torch.tensor([slot]))
                assert torch.equal(keys[:, :, slot].float(), rounded[0].float()), "the new keys are stored"
                assert torch.equal(values[:, :, slot].float(), rounded[1].float()), "the new values are stored"
                slots = torch.arange(slot + 1)
                bias = torch.zeros(3, 1, 1, slot + 1).masked_fill_(slots < first[:, None, None, None], -torch.inf)
                wide_keys, wide_values = (
                    cached[:, :, : slot + 1].float().repeat_interleave(heads // kv_heads, dim=1) for cached in whole
                )
                asked = queries[:, :, None].float()
                expected = functional.scaled_dot_product_attention(asked, wide_keys, wide_values, bias)[:, :, 0]
                error, rounded = ((part.float() - expected).abs() for part in (found, expected.to(dtype)))
                unit = expected.abs().clamp(min=1)
                worst = max(worst, float((error / unit).max()))
                more = max(more, float(((error - rounded) / unit).max()))
            yield named(heads, kv_heads, dim, dtype, kept), (worst, more)


def neighbours() -> Iterator[tuple[str, bool]]:
    """Yield whether a row's output is the same bit for bit alone, in another place, and with more padding."""
    for heads, kv_heads, dim in SHAPES:
        for dtype, kept in KINDS:
            queries, new_keys, new_values, keys, values = drawn(5, heads, kv_heads, dim, dtype, kept)
            first, slot, row = torch.tensor([3, 0, 17, 70, 9]), torch.tensor([110]), 2
            whole = attend_one(queries, new_keys, new_values, keys, values, first, slot)[row]

            def again(order: list[int], padding: int) -> torch.Tensor:
                parts = [part[order] for part in (queries, new_keys, new_values, keys, values)]  # noqa: B023
                parts[3:] = [cached.float().roll(padding, 2).to(kept) for cached in parts[3:]]  # noqa: B023
                place = first[order] + padding, slot + padding  # noqa: B023
                mixed = attend_one(parts[0], parts[1], parts[2], parts[3], parts[4], *place)
                return mixed[order.index(row)]  # noqa: B023

            others = again([row], 0), again([row, 4, 3, 1, 0], 0), again([0, 1, row], 48)
            same = all(torch.equal(whole, other) for other in others)
            yield named(heads, kv_heads, dim, dtype, kept), same


def between() -> Iterator[tuple[str, float]]:
    """Yield the largest error of norms in one launch, relative where the reference is above 1, beyond a last place of a
    dtype of two bytes, where few values may differ by it; and 0 for attention that rotates as torch does."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for width in (64, 80, 2_048):
            made = torch.Generator().manual_seed(width)
            norms: list[nn.Module] = [RMSNorm(width, 1e-5, arithmetic) for arithmetic in RMS_NORMS.values()]
            for gain, bias in ((True, True), (True, False), (False, False)):
                norms.append(LayerNorm(width, 1e-5, gain=gain, bias=bias, low_precision=False))
            for place, norm in enumerate(norms):
                for parameter in norm.to(dtype).parameters():
                    parameter.copy_(torch.randn(width, generator=made))
                x, other = (3 * torch.randn(2, 5, 2 * width, generator=made) + 1).to(dtype)[..., :width]
                worst = 0.0
                for delta in (None, other):
                    total, expected = add_norm(x, delta, norm)
                    found = single_query.add_norm_once(x, delta, norm)
                    alone = single_query.add_norm_once(x[3:4], None if delta is None else delta[3:4], norm)
                    assert torch.equal(found[0], total), "the sum is torch's"
                    assert torch.equal(alone[1], found[1][3:4]), "a row depends on no other"
                    error, wide = (found[1].float() - expected.float()).abs(), expected.float().abs()
                    place_of_last = (torch.finfo(dtype).eps / 2) * torch.exp2(torch.frexp(wide).exponent)
                    if dtype != torch.float32:
                        assert (error > 0).float().mean() < 1e-2, "values are rounded as torch rounds"
                        error -= place_of_last
                    worst = max(worst, float((error / wide.clamp(min=1)).max()))
                yield f"norm {place} of {width}, {str(dtype)[6:]}", worst
        for (width, turned, pairs, by_head), (heads, kv_heads) in itertools.product(
            ROTATIONS, ((4, 4), (6, 2), (7, 1))
        ):
            queries, new_keys, *cached = drawn(3, heads, kv_heads, width, dtype, dtype)
            by = (heads + kv_heads,) if by_head else (3, 1)
            angles = torch.randn(by, generator=torch.Generator().manual_seed(0))[..., None] * torch.arange(turned // 2)
            angles = angles if pairs else torch.cat((angles, angles), -1)
            cos, sin = (part if pairs else part.to(dtype) for part in (angles.cos(), angles.sin()))
            around, place = turn(torch.cat((queries, new_keys), 1), cos, sin, pairs), (torch.tensor([0, 7, 40]), SLOT)
            copies = [part.clone() for part in cached]
            expected = attend_one(around[:, :heads], around[:, heads:], *copies, *place)
            found = attend_one(queries, new_keys, *cached, *place, (cos, sin), pairs)
            same = torch.equal(found, expected) and torch.equal(cached[1], copies[1])
            case = f"rotation of {turned} in {heads}/{kv_heads} heads of {width}, {pairs}, {by_head}, {str(dtype)[6:]}"
            yield case, float(not same)


def gates() -> Iterator[tuple[str, float]]:
    """Yield the largest error of each activation with a gate, relative where the reference is above 1: over 1 for
    values that torch has as NaN, infinity or zero, and the kernel has not."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name, activation in GATED.items():
            worst = 0.0
            for width in (80, 1_024, 1_408):
                inner = (4 * torch.randn(5, 2 * width, generator=torch.Generator().manual_seed(width))).to(dtype)
                inner[0, :8] = torch.tensor([0.0, -0.0, 60, -60, 1e4, -1e4, torch.inf, torch.nan])
                found, expected = single_query.gate_once(activation)(inner), activation(inner)
                shown = expected.isfinite()
                assert torch.equal(found[~shown].nan_to_num(7), expected[~shown].nan_to_num(7)), name
                errors = (found.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
                worst = max(worst, float(errors[shown].max()))
            yield f"{name}, {str(dtype)[6:]}", worst
    yield "no gate", float(any(single_query.gate_once(plain) is not plain for plain in PLAIN.values()))


def codes() -> Iterator[tuple[str, bool]]:
    """Yield whether the graph's path draws the codes of the plain path, with and without guidance, by one span of all
    slots."""
    ampere = patch.object(torch.cuda, "get_device_capability", return_value=(8, 0))
    with ampere, patch.object(decoding, "compiler_problem", return_value=""):
        yield "the kernel's own check", decoding.attention_problem("cpu", torch.bfloat16, 4, 2, 64) == ""
        older = decoding.attention_problem("cpu", torch.bfloat16, 4, 2, 64, FLOAT8)
        yield "float8 on Ampere", older == "a GPU older than Ada and Hopper does not convert float8"
    hopper = patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
    with hopper, patch.object(decoding, "compiler_problem", return_value=""):
        decoding.attention_problem.cache_clear()
        yield "its check of float8", decoding.attention_problem("cpu", torch.bfloat16, 4, 2, 64, FLOAT8) == ""
    families: list[dict[str, object]] = [
        {},
        {"n_kv_heads": 1, "qk_norm": True},
        {"positional_embedding_type": "head_rotary", "model_norm": "rms_norm"},
    ]
    for changes in families:
        shape = {"hidden_dim": 64, "n_layers": 2, "n_heads": 4, "seq_len": 256, "vocab_size": 300}
        content = {**shape, "post_embed_norm": False, "weight_tying": False, **changes}
        torch.manual_seed(0)
        model = Transformer(ModelConfig.model_validate(content)).requires_grad_(False).eval()
        with torch.inference_mode():
            model.layers[0].ffn_norm.weight.mul_(torch.rand(64) + 0.5)
        yield f"{changes}, the own check of norms", decoding.step_problem(model) == ""
        prompts = [Prompt(str(index), tuple(range(1, 12 - index))) for index in range(4)]
        for scale, kept in ((1.0, None), (3.0, None), (3.0, "float8")):
            params, without = SamplingParams(guidance_scale=scale), (0,) if scale > 1 else None
            spec = SamplerSpec(range(172, 300), 6, params, 4, without, path="plain", cache_dtype=kept)
            [expected] = generate(model, prompts, spec)
            # The kernel's values and graphs are not asked for where there is no GPU.
            with patch.object(decoding, "attention_kind", return_value=decoding.LIVE):
                [samples] = generate(model, prompts, replace(spec, path="graph"))
            assert samples.attention == decoding.LIVE
            yield f"{changes}, guidance {scale}, {kept}", torch.equal(samples.codes, expected.codes)


def compiled() -> Iterator[tuple[str, Mapping[str, int]]]:
    """Yield registers, bytes of spills and of shared memory of the kernels for two kinds of GPU."""
    shapes = ((16, 16, 128), (16, 4, 128), (16, 1, 128), (8, 8, 64))
    integers = dict.fromkeys(("query_stride", "key_stride", "value_stride", "capacity", "cos_row", "cos_head"), "i32")
    for chip in CHIPS:
        kinds = ("bf16", "fp8e4nv")[: 1 + (CHIPS[chip] >= 89)]
        for (heads, kv_heads, dim), kept, pairs in itertools.product(shapes, kinds, (False, True)):
            shape = single_query.constants(heads, kv_heads, dim)
            types = dict.fromkeys(("queries", "new_keys", "new_values"), "*bf16") | {"keys": f"*{kept}"}
            types |= {"values": f"*{kept}", "first": "*i64", "slot": "*i64"}
            types |= dict.fromkeys(("cos", "sin"), "*fp32" if pairs else "*bf16")
            types |= {"mixed": "*bf16" if shape["PARTS"] == 1 else "*fp32", "tops": "*fp32", "sums": "*fp32"}
            types |= {"scale": "fp32", "one": "fp32", **integers}
            options = {"TURNED": dim, "PAIRS": pairs, "num_warps": single_query.WARPS}
            facts = compiled_for(chip, single_query.attend_part, types, {**shape, **options})
            yield f"{chip}, {heads}/{kv_heads} heads of {dim}, {kept}, {'pairs' if pairs else 'halves'}", facts
        for dim, is_layer_norm in ((2_048, True), (4_096, False), (8_192, True)):
            places = dict.fromkeys(("x", "delta", "weight", "bias", "total", "output"), "*bf16")
            switches = {"SUMMED": True, "CENTRED": is_layer_norm, "ROUNDED": not is_layer_norm, "GAIN": True}
            sizes = {"D": dim, "WIDTH": dim, "BIAS": is_layer_norm, "MORE": 0.0, "num_warps": single_query.WARPS}
            facts = compiled_for(chip, single_query.normed_row, places | {"eps": "fp32"}, switches | sizes)
            yield f"{chip}, norm of {dim}", facts
        for name in GATED:
            places = {"inner": "*bf16", "output": "*bf16", "width": "i32"}
            sizes = {"NAME": name, "BLOCK": single_query.GATES, "num_warps": single_query.WARPS}
            yield f"{chip}, gate of {name}", compiled_for(chip, single_query.gated_part, places, sizes)


if __name__ == "__main__":
    parts = {"errors": errors, "neighbours": neighbours, "between": between, "gates": gates, "codes": codes}
    parts["compiled"] = compiled
    with torch.no_grad():
        print(json.dumps(dict(parts[sys.argv[1]]())))
