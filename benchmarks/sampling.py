"""Drawing whole images against Hugging Face's Llama with its static cache: codes per second.

Both run the same weights from the same prompts, taking turns in one process, and draw from the image rows only. Before
anything is timed their likeliest codes (temperature 0) are compared; what is compiled is compiled then too, and the
seconds are printed.

    python benchmarks/sampling.py [--case fp32-32|bf16-32|fp32-1] [--output FILE] [--quick]

Prints for each case a card (shape, bytes, path), a table with the cost of a code where 128, 512 and 1,024 positions
are live, and the distance from the machine's roofline, measured in the same run; and as last line one JSON document.
A ratio is Hugging Face's time over ours, above 1 when ours is faster. All cases take most of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from loss import Case as Shape
from loss import build_ours, build_theirs
from side_by_side import gemm_rate, interleaved, machine, medians, print_last_line, ratios, read_bandwidth, seconds
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, cache_bytes, generate
from evalsvc.sampling.logits import draw
from evalsvc.sampling.noise import stream_keys
from evalsvc.sampling.sampler import runnable_path
from evalsvc.spec.layout import image_then_special

OURS, THEIRS = "evalsvc", "transformers, static cache"
PROMPT_LENGTH = 32
COMPARED_LENGTH = 32
"""Codes an image whose likeliest choices are compared."""
EQUAL_SHARE = 0.9
"""Of the likeliest codes, in float32: rounding may swap two that are nearly equal, and the rest of an image differs."""
LIVE = (128, 512, 1_024)
"""Positions whose cost is shown."""
AROUND = 8
"""Steps on either side whose median is the cost at a position."""


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    dtype: torch.dtype
    batch: int
    length: int
    repetitions: int

    @property
    def codes(self) -> int:
        return self.batch * self.length

    @property
    def image_ids(self) -> range:
        image = self.shape.layout.image_range
        assert image is not None
        return image

    def spec(self, params: SamplingParams) -> SamplerSpec:
        return SamplerSpec(self.image_ids, self.length, params, self.batch, bucket=PROMPT_LENGTH)


# open_lm_160m with the paper's vocabulary, and a small one that shows only that the benchmark works.
FULL_SHAPE = Shape(768, 12, 12, image_then_special().resolve(66_823), 8, 3)
QUICK_SHAPE = Shape(256, 4, 4, image_then_special(511, 64).resolve(582), 8, 3)
KINDS = {"fp32-32": (torch.float32, 32), "bf16-32": (torch.bfloat16, 32), "fp32-1": (torch.float32, 1)}


def make_case(name: str, quick: bool) -> Case:
    dtype, batch = KINDS[name]
    if quick:
        return Case(name, QUICK_SHAPE, dtype, min(batch, 8), length=40, repetitions=2)
    return Case(name, FULL_SHAPE, dtype, batch, length=1_024, repetitions=3)


class ImageRowsOnly(LogitsProcessor):
    """Takes the other rows out, so that both sides draw from one distribution; notes when it is called."""

    def __init__(self, case: Case) -> None:
        self.bias = torch.full((case.shape.rows,), float("-inf"))
        self.bias[case.image_ids.start : case.image_ids.stop] = 0
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times.append(time.perf_counter())
        return scores + self.bias


@dataclass
class Steps:
    """Seconds between the steps of every turn of one side."""

    turns: list[list[float]] = field(default_factory=list)

    def add(self, times: Sequence[float]) -> None:
        self.turns.append([later - earlier for earlier, later in pairwise(times)])

    def at(self, live: int) -> float | None:
        """The median step in which so many positions were live; None where the case is shorter."""
        place = live - PROMPT_LENGTH - 1
        near = [turn[max(0, place - AROUND) : place + AROUND] for turn in self.turns]
        found = [step for steps in near for step in steps]
        return statistics.median(found) if found else None


def make_prompts(case: Case) -> list[Prompt]:
    pick = random.Random(0)
    text = range(case.shape.layout.text.size)
    return [Prompt(str(row), tuple(pick.choices(text, k=PROMPT_LENGTH))) for row in range(case.batch)]


def our_codes(model: Transformer, prompts: list[Prompt], spec: SamplerSpec, steps: Steps | None = None) -> torch.Tensor:
    times: list[float] = []
    batches = generate(model, prompts, spec, lambda done: times.append(time.perf_counter()))
    codes = torch.cat([samples.codes for samples in batches])
    if steps is not None:
        steps.add(times)
    return codes


def their_codes(
    case: Case, model: LlamaForCausalLM, prompts: list[Prompt], temperature: float = 1.0, steps: Steps | None = None
) -> torch.Tensor:
    ids = torch.tensor([prompt.ids for prompt in prompts])
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    processor = ImageRowsOnly(case)
    drawn = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=temperature > 0,
        min_new_tokens=case.length,
        max_new_tokens=case.length,
        cache_implementation="static",
        disable_compile=True,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([processor]),
        **sampling,
    )
    if steps is not None:
        steps.add(processor.times)
    return drawn[:, PROMPT_LENGTH:] - case.image_ids.start


@dataclass(frozen=True)
class Roofline:
    """The shortest time that the machine allows: memory at its bandwidth, or products at their rate."""

    weight_bytes: int
    weights: int
    bandwidth: float
    rate: float

    def step(self, case: Case, live: int) -> float:
        """Seconds of a step in which so many positions are live."""
        config = case.shape
        keys_and_values = 2 * config.n_layers * case.batch * config.hidden_dim * live
        memory = (self.weight_bytes + keys_and_values * case.dtype.itemsize) / self.bandwidth
        return max(memory, 2 * (case.batch * self.weights + keys_and_values) / self.rate)

    def whole(self, case: Case) -> float:
        """Seconds of all steps of a batch."""
        return sum(self.step(case, PROMPT_LENGTH + position) for position in range(case.length))


def measure_roofline(case: Case, model: Transformer) -> Roofline:
    tables = ("tok_embeddings.weight", "output.weight")
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in tables)
    weights += len(case.image_ids) * case.shape.hidden_dim
    return Roofline(weights * case.dtype.itemsize, weights, read_bandwidth(), gemm_rate(case.dtype))


def draw_seconds(case: Case, path: str) -> float:
    """What drawing a batch of codes from their logits costs, noise and all."""
    logits = torch.randn(case.batch, len(case.image_ids), generator=torch.Generator().manual_seed(0))
    keys = stream_keys(0, [str(row) for row in range(case.batch)], torch.device("cpu"))
    compiled = path == "compiled"

    def one(position: int) -> Callable[[], object]:
        return lambda: draw(logits, SamplingParams(), keys, position, compile_noise=compiled)

    with torch.inference_mode():
        return statistics.median([seconds(one(position)) for position in range(24)][4:])


def run_case(case: Case) -> dict[str, Any]:
    ours = build_ours(case.shape).to(case.dtype)
    theirs = build_theirs(case.shape, ours)
    prompts = make_prompts(case)
    spec = case.spec(SamplingParams())
    spec = replace(spec, path=runnable_path(ours, spec))
    print_card(case, ours, spec)
    share = compare(case, ours, theirs, prompts, spec)
    roofline = measure_roofline(case, ours)
    our_steps, their_steps = Steps(), Steps()
    times = interleaved(
        {
            OURS: lambda: our_codes(ours, prompts, spec, our_steps),
            THEIRS: lambda: their_codes(case, theirs, prompts, steps=their_steps),
        },
        case.repetitions,
    )
    noise = draw_seconds(case, spec.path or "")
    return print_results(case, spec, share, times, {OURS: our_steps, THEIRS: their_steps}, roofline, noise)


def compare(case: Case, ours: Transformer, theirs: LlamaForCausalLM, prompts: list[Prompt], spec: SamplerSpec) -> float:
    """The share of equal likeliest codes; also the warm-up of both sides."""
    short = replace(case, length=min(case.length, COMPARED_LENGTH))
    greedy = replace(spec, length=short.length, params=SamplingParams(temperature=0))
    first = seconds(lambda: our_codes(ours, prompts, greedy))
    second = seconds(lambda: our_codes(ours, prompts, replace(greedy, params=SamplingParams())))
    equal = our_codes(ours, prompts, greedy) == their_codes(short, theirs, prompts, 0.0)
    share = float(equal.double().mean())
    print(f"warm-up   {first + second:.1f} s for 2 × {short.length} steps, packing and compiling included", flush=True)
    if case.dtype == torch.float32 and share < EQUAL_SHARE:
        raise SystemExit(f"only {share:.1%} of the likeliest codes are equal on both sides")
    return share


def print_card(case: Case, model: Transformer, spec: SamplerSpec) -> None:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    shape, name = case.shape, str(case.dtype).removeprefix("torch.")
    print(f"\ncase      {case.name}, path {spec.path}")
    print(f"model     {shape.hidden_dim} wide, {shape.n_layers} layers, {shape.n_heads} heads")
    print(f"          {shape.rows:,} rows, {name}")
    print(f"weights   {weights / 1e9:.3f} GB")
    print(f"draws     {case.length:,} codes of {len(case.image_ids):,} for each of {case.batch} prompts")
    cache = cache_bytes(model.config, case.batch, PROMPT_LENGTH + case.length - 1, case.dtype)
    print(f"cache     {cache / 1e9:.3f} GB at the end")
    print(f"machine   {machine()}", flush=True)


def print_results(
    case: Case,
    spec: SamplerSpec,
    share: float,
    times: dict[str, list[float]],
    steps: dict[str, Steps],
    roofline: Roofline,
    noise: float,
) -> dict[str, Any]:
    whole, middle = roofline.whole(case), medians(times)
    columns = "".join(f"{f'ms at {live:,}':>14}" for live in LIVE)
    print(f"\n{'':28}{'codes/s':>9}{'seconds':>9}{'roofline':>10}{columns}")
    for name, spent in middle.items():
        costs = "".join(_cost(case, roofline, steps[name].at(live), live) for live in LIVE)
        print(f"{name:28}{case.codes / spent:9.0f}{spent:9.2f}{whole / spent:10.0%}{costs}")
    ratio = ratios(times, OURS)[THEIRS]
    step = middle[OURS] / case.length
    print(f"\nratio     {ratio:.2f}, the median of {[round(t / o, 2) for o, t in zip(*times.values(), strict=True)]}")
    print(f"ceiling   {roofline.bandwidth / 1e9:.1f} GB/s, {roofline.rate / 1e9:.0f} GFLOP/s: {whole:.1f} s")
    print(f"noise     {1e3 * noise:.2f} ms for drawing a batch of codes, {noise / step:.1%} of the mean step")
    print(f"greedy    {share:.1%} of the likeliest codes are equal on both sides", flush=True)
    return {
        "ratio": ratio,
        "path": spec.path,
        "seconds": times,
        "codes_per_second": {name: case.codes / spent for name, spent in middle.items()},
        "of_roofline": {name: whole / spent for name, spent in middle.items()},
        "step_seconds": {name: {str(live): side.at(live) for live in LIVE} for name, side in steps.items()},
        "roofline_step_seconds": {str(live): roofline.step(case, live) for live in LIVE},
        "bandwidth": roofline.bandwidth,
        "gemm_rate": roofline.rate,
        "noise_share": noise / step,
        "equal_greedy_codes": share,
    }


def _cost(case: Case, roofline: Roofline, step: float | None, live: int) -> str:
    return f"{'–':>14}" if step is None else f"{1e3 * step:8.1f} {roofline.step(case, live) / step:5.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    parser.add_argument("--case", choices=KINDS, help="one case alone [all]")
    parser.add_argument("--output", type=Path, help="a file that gets the last line, after every case")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in [arguments.case] if arguments.case else list(KINDS):
        results[name] = run_case(make_case(name, arguments.quick))
        if arguments.output:
            arguments.output.write_text(json.dumps(results))
    print()
    equal = {name: result["equal_greedy_codes"] for name, result in results.items()}
    found = {name: result["ratio"] for name, result in results.items()}
    print_last_line("sampling", found, equal_greedy_codes=equal, cases=results)


if __name__ == "__main__":
    main()
