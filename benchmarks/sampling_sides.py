"""The sides of `sampling.py`: each draws a batch of images from the same prompts, by its own program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate

PROMPT_LENGTH = 32
AROUND = 8
"""Number of steps before and after a position whose median is the cost at the position."""


@dataclass
class Steps:
    """Seconds between the steps of every turn of one side; empty where the side does not report its steps."""

    turns: list[list[float]] = field(default_factory=list)

    def add(self, times: Sequence[float]) -> None:
        self.turns.append([later - earlier for earlier, later in pairwise(times)])

    def at(self, live: int) -> float | None:
        """Return the median seconds of steps at about `live` live positions; None where the case is shorter."""
        place = live - PROMPT_LENGTH - 1
        near = [turn[max(0, place - AROUND) : place + AROUND] for turn in self.turns]
        seconds = [step for steps in near for step in steps]
        return statistics.median(seconds) if seconds else None


Draw = Callable[[int, float, Steps], torch.Tensor]
"""Function that draws a number of codes per image at a temperature, and records its steps: codes [images, length]."""


def ours(model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> Draw:
    """Return the side of evalsvc: `generate`, in one batch."""

    def draw(length: int, temperature: float, steps: Steps) -> torch.Tensor:
        times: list[float] = []
        asked = replace(spec, length=length, params=SamplingParams(temperature=temperature))
        batches = generate(model, prompts, asked, lambda done: times.append(time.perf_counter()))
        codes = torch.cat([samples.codes for samples in batches])
        steps.add(times)
        return codes

    return draw


class ImageRowsOnly(LogitsProcessor):
    """Processor that excludes all rows but the image rows, and records the time of every call."""

    def __init__(self, rows: int, image_ids: range) -> None:
        self.bias = only(rows, image_ids)
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times.append(time.perf_counter())
        return scores + self.bias


def only(rows: int, image_ids: range) -> torch.Tensor:
    """Return the bias on the logits of all rows with which only image rows are drawn."""
    bias = torch.full((rows,), float("-inf"))
    bias[image_ids.start : image_ids.stop] = 0
    return bias


def hugging_face(model: LlamaForCausalLM, prompts: Sequence[Prompt], image_ids: range) -> Draw:
    """Return the side of Hugging Face: `generate` with its static cache."""
    ids = torch.tensor([prompt.ids for prompt in prompts])

    def draw(length: int, temperature: float, steps: Steps) -> torch.Tensor:
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        processor = ImageRowsOnly(model.config.vocab_size, image_ids)
        drawn = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=temperature > 0,
            min_new_tokens=length,
            max_new_tokens=length,
            cache_implementation="static",
            disable_compile=True,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([processor]),
            **sampling,
        )
        steps.add(processor.times)
        return drawn[:, ids.shape[1] :] - image_ids.start

    return draw


def ctranslate2(folder: Path, work: Path, prompts: Sequence[Prompt], image_ids: range) -> Draw:
    """Return the side of CTranslate2: its `Generator` on the Llama in `folder`, in float32, converted into `work`.

    A bias on the logits excludes all rows but the image rows. CTranslate2 does not report the time of single steps.
    """
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(folder))
    model = converter._load()
    model.decoder.projection.bias = only(len(model._vocabulary), image_ids).clamp(min=-1e30).numpy()
    for name in ("bos_token", "eos_token", "unk_token"):  # a tokenizer may have none, and the file needs strings
        setattr(model.config, name, getattr(model.config, name) or model._vocabulary[0])
    model.validate()
    model.optimize(quantization=None)
    work.mkdir()
    model.save(str(work))
    generator = Generator(str(work), compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads())
    tokens = [[model._vocabulary[token] for token in prompt.ids] for prompt in prompts]

    def draw(length: int, temperature: float, steps: Steps) -> torch.Tensor:
        sampling = {"sampling_topk": 0, "sampling_temperature": temperature} if temperature else {"sampling_topk": 1}
        results = generator.generate_batch(
            tokens, min_length=length, max_length=length, beam_size=1, include_prompt_in_result=False, **sampling
        )
        return torch.tensor([result.sequences_ids[0] for result in results]) - image_ids.start

    return draw
