"""Drawing image codes against Hugging Face's Llama with its static cache: codes per second.

Both run the same weights from the same prompts, alternating in one process, and draw from the image rows only. Before
anything is timed their likeliest codes (temperature 0) are compared.

    python benchmarks/sampling.py [--quick]

Prints a card (shape, bytes, operations), a table, the distance from the memory bandwidth that this machine manages,
and as last line one JSON document; `ratios` are Hugging Face's time over ours, above 1 when ours is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from loss import Case as Shape
from loss import build_ours, build_theirs
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from evalsvc.layout import image_then_special
from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, cache_bytes, generate

FLOAT = torch.float32
PROMPT_LENGTH = 32
EQUAL_SHARE = 0.9
"""Of the likeliest codes: rounding may swap two that are nearly equal, and then the rest of that image differs."""


@dataclass(frozen=True)
class Case:
    shape: Shape
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
FULL = Case(Shape(768, 12, 12, image_then_special().resolve(66_823), 8, 3), batch=8, length=64, repetitions=3)
QUICK = Case(Shape(256, 4, 4, image_then_special(511, 64).resolve(582), 8, 3), batch=8, length=64, repetitions=3)


class ImageRowsOnly(LogitsProcessor):
    """Takes the other rows out, so that both sides draw from one distribution."""

    def __init__(self, case: Case) -> None:
        self.bias = torch.full((case.shape.rows,), float("-inf"))
        self.bias[case.image_ids.start : case.image_ids.stop] = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores + self.bias


def make_prompts(case: Case) -> list[Prompt]:
    pick = random.Random(0)
    text = range(case.shape.layout.text.size)
    return [Prompt(str(row), tuple(pick.choices(text, k=PROMPT_LENGTH))) for row in range(case.batch)]


def our_codes(case: Case, model: Transformer, prompts: list[Prompt], temperature: float = 1.0) -> torch.Tensor:
    spec = case.spec(SamplingParams(temperature=temperature))
    return torch.cat([samples.codes for samples in generate(model, prompts, spec)])


def their_codes(
    case: Case, model: LlamaForCausalLM, prompts: list[Prompt], processor: ImageRowsOnly, temperature: float = 1.0
) -> torch.Tensor:
    ids = torch.tensor([prompt.ids for prompt in prompts])
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
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
    return drawn[:, PROMPT_LENGTH:] - case.image_ids.start


def bytes_read(case: Case, model: Transformer) -> int:
    """Bytes that drawing all codes of the batch must read: each step the layers, the image rows and the live cache."""
    tables = ("tok_embeddings.weight", "output.weight")
    layers = sum(parameter.nbytes for name, parameter in model.named_parameters() if name not in tables)
    head = len(case.image_ids) * model.config.hidden_dim * FLOAT.itemsize
    contexts = range(PROMPT_LENGTH, PROMPT_LENGTH + case.length)
    cache = sum(cache_bytes(model.config, case.batch, context, FLOAT) for context in contexts)
    return case.length * (layers + head) + cache


def read_bandwidth() -> float:
    """Bytes a second of a sum over 512 MB, more than any cache holds; the best of several."""
    table = torch.ones(128 * 2**20)
    return table.nbytes / min(_seconds(table.sum) for _ in range(8))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the benchmark works")
    case = QUICK if parser.parse_args().quick else FULL
    ours = build_ours(case.shape)
    theirs = build_theirs(case.shape, ours)
    prompts, processor = make_prompts(case), ImageRowsOnly(case)
    total = bytes_read(case, ours)
    print_card(case, ours, total)
    # Also the warm-up.
    equal = our_codes(case, ours, prompts, 0.0) == their_codes(case, theirs, prompts, processor, 0.0)
    share = float(equal.double().mean())
    if share < EQUAL_SHARE:
        raise SystemExit(f"only {share:.1%} of the likeliest codes are equal on both sides")
    times: list[tuple[float, float]] = []
    for _ in range(case.repetitions):
        mine = _seconds(lambda: our_codes(case, ours, prompts))
        times.append((mine, _seconds(lambda: their_codes(case, theirs, prompts, processor))))
    print_results(case, total, share, times, read_bandwidth())


def print_card(case: Case, model: Transformer, total: int) -> None:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    shape = case.shape
    print(
        f"model     {shape.hidden_dim} wide, {shape.n_layers} layers, {shape.n_heads} heads, {shape.rows:,} rows, fp32"
    )
    print(f"weights   {weights / 1e9:.3f} GB")
    print(
        f"draws     {case.batch} prompts of {PROMPT_LENGTH} tokens, {case.length} codes of {len(case.image_ids):,} each"
    )
    print(f"reads     {total / case.length / 1e9:.3f} GB a step at least: layers, image rows of the head, live cache")
    print(f"machine   {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")


def print_results(case: Case, total: int, share: float, times: list[tuple[float, float]], bandwidth: float) -> None:
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"{'':26}{'codes/s':>10}{'seconds':>10}{'of ceiling':>12}")
    for name, seconds in zip(("evalsvc", "transformers, static cache"), medians, strict=True):
        print(f"{name:26}{case.codes / seconds:10.0f}{seconds:10.2f}{total / seconds / bandwidth:12.0%}")
    print(f"\nceiling   {bandwidth / 1e9:.1f} GB/s, a sum over 512 MB; {case.codes * bandwidth / total:.0f} codes/s")
    print(f"greedy    {share:.1%} of the likeliest codes are equal on both sides\n")
    result = {
        "benchmark": "sampling",
        "ratios": [theirs / ours for ours, theirs in times],
        "codes_per_second": {"ours": case.codes / medians[0], "theirs": case.codes / medians[1]},
        "ceiling_bytes_per_second": bandwidth,
        "of_ceiling": total / medians[0] / bandwidth,
        "equal_greedy_codes": share,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
