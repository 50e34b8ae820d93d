"""Run the kernel of `evalsvc.sampling.drawing` in Triton's interpreter, or compile it for GPUs without one.

A process of its own, which prints JSON, as `single_query_in_triton.py` is.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from gpu_code import CHIPS, compiled_for

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, drawing, generate, sampler
from evalsvc.sampling.drawing import draw_by_kernel
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import stream_keys
from evalsvc.spec.model_config import ModelConfig

PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.0, guidance_scale=2.0),
    SamplingParams(temperature=0.7),
    SamplingParams(top_k=1),
    SamplingParams(top_k=1_000, guidance_scale=7.5),
    SamplingParams(top_p=0.01),
    SamplingParams(top_p=0.9),
    SamplingParams(temperature=1.3, top_k=20, top_p=0.8, guidance_scale=3.0),
]
ROWS = 6


def drawn(codes: int, params: SamplingParams, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of which many are equal, and keys."""
    made = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS * (2 if params.guided else 1), codes, generator=made).bfloat16().float()
    return logits, stream_keys(seed, [str(row) for row in range(ROWS)], torch.device("cpu"))


def spoilt(logits: torch.Tensor) -> torch.Tensor:
    """Return logits with values that are not finite, and with zeros of both signs."""
    inf, nan = float("inf"), float("nan")
    logits[0, 7], logits[1, 9], logits[1, 50], logits[3, 5] = nan, inf, inf, nan
    logits[2], logits[3, 4], logits[4], logits[5, 3:] = -inf, inf, nan, -inf
    logits[5, 0], logits[5, 1] = 0.0, -0.0
    return logits


def equal(logits: torch.Tensor, params: SamplingParams, keys: torch.Tensor, position: int) -> bool:
    expected, found = (way(logits.clone(), params, keys, position) for way in (draw, draw_by_kernel))
    return all(map(torch.equal, expected, found))


def codes() -> Iterator[tuple[str, bool]]:
    """Yield whether codes and flags are those of `logits.draw`, for few and many codes, at some positions."""
    for params in PARAMS:
        for count in (1, 50, 1_024, 5_000, 16_384):
            logits, keys = drawn(count, params, count)
            yield f"{count} codes, {params}", all(equal(logits, params, keys, place) for place in (0, 1, 1_023))
        yield f"not finite, {params}", equal(spoilt(drawn(100, params, 0)[0]), params, keys, 5)
        yield f"the kernel's own check, {params}", sampler.kernel_problem("cpu", 100, params) == ""
    yield "more codes than there is room for", sampler.kernel_problem("cpu", 20_000, PARAMS[6]) != ""


def neighbours() -> Iterator[tuple[str, bool]]:
    """Yield whether a row's draw is the same alone and in another place."""
    for params in PARAMS:
        logits, keys = drawn(300, params, 1)
        parts, row = logits.view(-1, ROWS, 300), 2
        whole = draw_by_kernel(logits, params, keys, 3)[0][row]
        orders = [row], [row, 5, 4, 3, 1, 0], [0, 1, row]
        others = [draw_by_kernel(parts[:, order].flatten(0, 1), params, keys[order], 3)[0] for order in orders]
        same = all(found[order.index(row)] == whole for found, order in zip(others, orders, strict=True))
        yield str(params), bool(same)


def generated() -> Iterator[tuple[str, bool]]:
    """Yield whether the loop draws the same codes by the kernel."""
    shape: dict[str, Any] = {"hidden_dim": 64, "n_layers": 1, "n_heads": 4, "seq_len": 64, "vocab_size": 300}
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**shape, "post_embed_norm": False, "weight_tying": False})
    model = Transformer(config).requires_grad_(False).eval()
    prompts = [Prompt(str(index), (1, 2, 3 + index)) for index in range(4)]
    for params in PARAMS:
        spec = SamplerSpec(range(172, 300), 6, params, 4, (0,) if params.guided else None, path="graph")
        [expected] = generate(model, prompts, spec)
        with patch.object(sampler, "noise_kind", return_value=sampler.KERNEL):
            [samples] = generate(model, prompts, spec)
        same = torch.equal(samples.codes, expected.codes)
        yield str(params), (samples.noise, expected.noise, same) == (sampler.KERNEL, sampler.UNCOMPILED, True)


def compiled() -> Iterator[tuple[str, dict[str, int]]]:
    pointers = {"logits": "*fp32", "keys": "*i64", "settings": "*fp64", "drawn": "*i64", "finite": "*i1"}
    types = pointers | dict.fromkeys(("rows", "stride", "position", "top_k"), "i32")
    cases = [(drawing.MOST_WEIGHED, params) for params in PARAMS]
    cases += [(256, PARAMS[-1]), (drawing.MOST_RANKED, PARAMS[4]), (2**18, PARAMS[0])]
    for chip in CHIPS:
        for count, params in cases:
            facts = compiled_for(chip, drawing.draw_row, types, drawing.constants(count, params))
            yield f"{chip}, {count} codes, {params}", facts


if __name__ == "__main__":
    what = {"codes": codes, "neighbours": neighbours, "generated": generated, "compiled": compiled}[sys.argv[1]]
    print(json.dumps(dict(what())))
