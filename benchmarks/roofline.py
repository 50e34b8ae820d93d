"""How many images a second a card can draw at best, and, where there is a GPU, how near `generate` comes.

A step must read the layers, the image rows of the head, and the live keys and values of every sequence; and it must
multiply. It takes at least the longer of both, and an image the sum over its steps. Cards have the rates on their
data sheets, dense, without sparsity; this machine's are measured there and then. `generate` is timed twice over: as a
whole, and its steps alone, without prompts and without the captures of graphs.

    python benchmarks/roofline.py [--model open_lm_1b] [--batch 1,32,128,256] [--guidance] [--prompt 36]
        [--dtype bfloat16] [--cache-dtype float8] [--context 600] [--quick]

`--context` takes every step at that many live tokens, in place of the sum over an image. Prints a card, a table, and as
last line one JSON document; `ratios` is empty, since there is no peer. `--quick` measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from side_by_side import copy_bandwidth, gemm_rate, machine, print_last_line, read_bandwidth, seconds

from evalsvc.families.open_lm import registered_models
from evalsvc.models import Transformer
from evalsvc.models.packing import layer_weights
from evalsvc.precision import use_full_float32
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.sampling.memory import footprint
from evalsvc.spec.layout import parse_layout
from evalsvc.spec.model_config import ModelConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
COCO = 30_000
HERE = "this machine"
WARM_UP_CODES = 64
MARK_STEPS = 16
"""Steps between two readings of the clock: each makes the card wait, which over so many steps costs nothing."""
MARKS = 4
"""Readings that make a group: a graph is captured every 64 steps, so one of them has a capture in it."""


@dataclass(frozen=True)
class Card:
    bandwidth: float
    """Bytes a second."""
    half: float
    """Operations a second in bfloat16 and float16."""
    single: float
    """In float32, without TF32."""
    memory: float = float("inf")
    """Bytes."""


CARDS = {
    "H100 SXM": Card(3.35e12, 990e12, 67e12, 80e9),
    "H200 SXM": Card(4.8e12, 990e12, 67e12, 141e9),
    "A100 SXM": Card(2.04e12, 312e12, 19.5e12, 80e9),
    "L40S": Card(0.864e12, 362e12, 91.6e12, 48e9),
    "RTX 4090": Card(1.01e12, 165e12, 82.6e12, 24e9),
}


@dataclass(frozen=True)
class Work:
    """What is drawn."""

    config: ModelConfig
    batch: int
    """Images at once."""
    guided: bool = False
    """Two sequences an image."""
    prompt: int = 36
    """Tokens before the first code."""
    length: int = 1_024
    """Codes an image."""
    codebook: int = 16_384
    dtype: str = "bfloat16"
    cache_dtype: str | None = None
    """[dtype]"""
    context: int | None = None
    """Live tokens in every step [they grow from `prompt`]."""

    @property
    def rows(self) -> int:
        return 2 * self.batch if self.guided else self.batch

    @property
    def weights(self) -> int:
        """Of the products of one step."""
        return layer_weights(self.config) + self.codebook * self.config.hidden_dim

    @property
    def contexts(self) -> Sequence[int]:
        if self.context is not None:
            return [self.context] * self.length
        return range(self.prompt, self.prompt + self.length)

    def bytes_read(self, context: int) -> int:
        """Of one step: weights, and keys and values of all rows."""
        per_token = 2 * self.config.n_layers * self.config.kv_dim * ITEM_BYTES[self.cache_dtype or self.dtype]
        return self.weights * ITEM_BYTES[self.dtype] + self.rows * context * per_token

    def operations(self, context: int) -> int:
        """Of one step: two per weight, and two each for scores and their mix."""
        return self.rows * (2 * self.weights + 4 * context * self.config.n_layers * self.config.attention_dim)

    def batch_seconds(self, card: Card) -> float:
        """The least time for the codes of one batch."""
        flops = card.single if self.dtype == "float32" else card.half
        return sum(
            max(self.bytes_read(context) / card.bandwidth, self.operations(context) / flops)
            for context in self.contexts
        )

    def images_per_second(self, card: Card) -> float:
        return self.batch / self.batch_seconds(card)

    def memory_bytes(self) -> int:
        """What evalsvc predicts for sampling alone, with a cache of the model's dtype."""
        dtype = getattr(torch, self.dtype)
        return footprint(self.config, self.spec(), self.prompt, dtype, device="cuda").total

    def spec(self) -> SamplerSpec:
        params = SamplingParams(guidance_scale=3.0 if self.guided else 1.0)
        first = self.config.vocab_size - self.codebook
        return SamplerSpec(
            range(first, self.config.vocab_size), self.length, params, self.batch, (0,) if self.guided else None
        )


def widened(name: str, rows: int) -> ModelConfig:
    """A registered model with a larger table."""
    return ModelConfig.model_validate(registered_models()[name] | {"vocab_size": rows})


def this_machine(dtype: str, device: str) -> Card:
    rate = gemm_rate(getattr(torch, dtype), device)
    return Card(copy_bandwidth(device) if device == "cuda" else read_bandwidth(device), half=rate, single=rate)


@dataclass(frozen=True)
class Measured:
    """Images a second of `generate`."""

    whole: float
    """Of a batch from its prompts to its last code, with the captures of graphs: what a user waits for."""
    steps: float
    """Of its steps and draws alone, which is what the ceilings are of."""


def measured_rate(work: Work, device: str) -> Measured:
    """The rates of one batch with random weights, after a short one that starts the libraries."""
    model = random_model(work, device)
    prompts = [Prompt(str(index), tuple(range(1, work.prompt + 1))) for index in range(work.batch)]
    short = replace(work.spec(), length=min(WARM_UP_CODES, work.length))
    for _ in generate(model, prompts, short):
        pass
    marks: list[float] = []
    count = 0

    def on_step(codes: int) -> None:
        nonlocal count
        if count % MARK_STEPS == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        count += 1

    whole = seconds(lambda: [samples.indices for samples in generate(model, prompts, work.spec(), on_step)])
    return Measured(work.batch / whole, work.batch / (work.length * step_seconds(marks)))


def random_model(work: Work, device: str) -> Transformer:
    with torch.device(device):
        model = Transformer(work.config)
    # The rotary frequencies are made on the CPU whatever the default device.
    return model.to(device, getattr(torch, work.dtype)).requires_grad_(False).eval()


def step_seconds(marks: Sequence[float]) -> float:
    """The mean of a step, from readings of the clock every `MARK_STEPS` steps, captures left out.

    The steps of a group take what its lower median took: a second capture may be in the group of the first steps.
    """
    between = [(end - start) / MARK_STEPS for start, end in itertools.pairwise(marks)]
    groups = [between[first : first + MARKS] for first in range(0, len(between), MARKS)]
    return sum(len(group) * statistics.median_low(group) for group in groups) / len(between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="open_lm_1b", choices=sorted(registered_models()))
    parser.add_argument(
        "--rows", type=int, default=parse_layout("image-then-special").resolve(66_823).rows, help="of the table"
    )
    parser.add_argument("--batch", default="1,32,128,256", help="images at once, several with commas")
    parser.add_argument("--guidance", action="store_true", help="two sequences an image")
    parser.add_argument("--prompt", type=int, default=36, help="tokens before the first code")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--cache-dtype", choices=sorted(ITEM_BYTES), help="of keys and values [the model's]")
    parser.add_argument("--context", type=int, help="live tokens in every step [they grow]")
    parser.add_argument("--quick", action="store_true", help="the cards only; measures nothing")
    arguments = parser.parse_args()
    first = Work(
        widened(arguments.model, arguments.rows),
        batch=1,
        guided=arguments.guidance,
        prompt=arguments.prompt,
        dtype=arguments.dtype,
        cache_dtype=arguments.cache_dtype,
        context=arguments.context,
    )
    works = [replace(first, batch=int(batch)) for batch in arguments.batch.split(",")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_full_float32()  # as a worker does
    cards = CARDS if arguments.quick else CARDS | {HERE: this_machine(arguments.dtype, device)}
    print_card(first, cards.get(HERE))
    rates = {name: {work.batch: work.images_per_second(card) for work in works} for name, card in cards.items()}
    print_table(works, cards, rates)
    measured = {}
    if device == "cuda" and not arguments.quick:
        measured = print_measured(works, rates[HERE], device)
    print_last_line("roofline", {}, images_per_second=rates, measured=measured)


def print_card(work: Work, here: Card | None) -> None:
    config = work.config
    print(
        f"model     {config.hidden_dim} wide, {config.n_layers} layers, {config.n_heads} heads, "
        f"{config.vocab_size:,} rows, {work.dtype}"
    )
    print(f"weights   {work.weights * ITEM_BYTES[work.dtype] / 1e9:.2f} GB a step: layers and {work.codebook:,} rows")
    print(f"cache     {work.bytes_read(1) - work.bytes_read(0):,} bytes a token and image")
    span = f"{work.context} live tokens in every step" if work.context else f"after a prompt of {work.prompt} tokens"
    print(f"draws     {work.length:,} codes an image, {span}{', guided' if work.guided else ''}")
    print(f"machine   {machine()}")
    if here:
        print(f"measured  {here.bandwidth / 1e9:.0f} GB/s, {here.half / 1e12:.2f} TFLOP/s in {work.dtype}")
    print()


def print_table(works: Sequence[Work], cards: Mapping[str, Card], rates: Mapping[str, Mapping[int, float]]) -> None:
    print(f"{'images/s at best':18}" + "".join(f"{'batch ' + str(work.batch):>16}" for work in works))
    for name, card in cards.items():
        cells = []
        for work in works:
            rate = rates[name][work.batch]
            fits = work.memory_bytes() <= card.memory
            cells.append(f"{rate:8.3g} {COCO / rate / 60:5.0f}m" + (" " if fits else "*"))
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"\nminutes are for {COCO:,} images; * does not fit into the card's memory with evalsvc's prediction")
    needed = ", ".join(f"{work.batch}: {work.memory_bytes() / 1e9:.1f} GB" for work in works)
    print(f"memory    by batch, without decoder and features: {needed}\n")


def print_measured(works: Sequence[Work], ceilings: Mapping[int, float], device: str) -> dict[int, dict[str, float]]:
    figures = {}
    for work in works:
        rate, ceiling = measured_rate(work, device), ceilings[work.batch]
        figures[work.batch] = {
            "images_per_second": rate.whole,
            "of_ceiling": rate.whole / ceiling,
            "steps_images_per_second": rate.steps,
            "steps_of_ceiling": rate.steps / ceiling,
        }
        print(
            f"measured  batch {work.batch}: {rate.whole:.2f} images/s with prompts and captures "
            f"({rate.whole / ceiling:.0%} of the ceiling), {rate.steps:.2f} by its steps ({rate.steps / ceiling:.0%})"
        )
    print()
    return figures


if __name__ == "__main__":
    main()
