"""Comparing sampled codes with a plain loop over open_lm's own logits: no cache, no batch, noise in Python's
integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evalsvc.data.captions import read_captions
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.miniature import ROOT
from evalsvc.models import DecodePath
from evalsvc.precision import use_full_float32
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.verify.agreement import Agreement
from evalsvc.verify.golden_files import TOKENIZER, Golden

LENGTH = 64
"""Number of codes of an image."""
LEAD = "no code leads by less than 2e-4"
"""Smallest change of log probability and noise together that would change a code."""


def verify_codes(golden: Golden) -> Iterator[Agreement]:
    """Compare codes of 8 prompts on every decode path of this device, and in batches of 1 and 8."""
    use_full_float32()
    expected, values = golden.tensors("sampling"), golden.values["sampling"]
    warped = SamplingParams(**values["params"])
    for quantity, name, params in (
        ("greedy codes", "greedy", SamplingParams(temperature=0)),
        ("drawn codes, guided, top-k, top-p", "warped", warped),
    ):
        for path in paths(golden.device):
            codes = draw_codes(golden, values[name], params, batch=8, path=path)
            yield _equal_codes(f"{quantity}, {path} steps", golden, codes, expected[name])
    alone = draw_codes(golden, values["warped"], warped, batch=1, path="plain")
    yield _equal_codes("drawn codes, one at a time", golden, alone, expected["warped"])


def paths(device: str) -> tuple[DecodePath, ...]:
    """Return the decode paths of a device that need no compiler."""
    return ("plain", "graph") if torch.device(device).type == "cuda" else ("plain", "packed")


def draw_codes(
    golden: Golden, names: Sequence[str], params: SamplingParams, batch: int, path: DecodePath
) -> Tensor:  # [n, LENGTH] int64
    """Sample images of the miniature's captions, which are named by their ids."""
    layout = golden.layout
    unconditional = tuple(layout.prompt(None, LENGTH).ids)
    assert layout.image_ids is not None, "the miniature has image rows"
    spec = SamplerSpec(layout.image_ids, LENGTH, params, batch, unconditional, path=path)
    prompts = _prompts(golden)
    codes = torch.zeros(len(names), LENGTH, dtype=torch.int64)
    for samples in generate(golden.trained, [prompts[name] for name in names], spec):
        codes[list(samples.indices)] = samples.codes.cpu()
    return codes


def _prompts(golden: Golden) -> Mapping[str, Prompt]:
    encode = read_tokenizer(TOKENIZER).encode
    captions = read_captions(ROOT / "captions.jsonl").captions
    return {
        caption.id: Prompt(caption.id, tuple(golden.layout.prompt(encode(caption.text), LENGTH).ids))
        for caption in captions
    }


def _equal_codes(quantity: str, golden: Golden, codes: Tensor, expected: Tensor) -> Agreement:
    differing = float((codes != expected.long()).sum())
    program = f"{golden.program('open_lm')}, plain loop"
    return Agreement(quantity, program, differing, 0.0, note=f"codes of {codes.numel()} that differ; {LEAD}")
