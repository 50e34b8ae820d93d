"""What the sections on sampling draw from: the 1B model with an image vocabulary, and small ones with exact arithmetic.

Weights are random, of a variance at which logits are of order 1, and nothing is read from a file.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from roofline import Work, widened
from torch import Tensor

from evalsvc.models import DecodePath, Transformer
from evalsvc.models.decoding import SPAN
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.spec.model_config import ModelConfig
from on_card.kit import Kit

BUCKET = 16
"""Tokens to a multiple of which prompts are padded: 16 leaves more steps in a span than a card's own 64."""


@dataclass(frozen=True)
class Subject:
    """A model, and what is drawn from it."""

    name: str
    """For rows of the table."""
    config: ModelConfig
    codebook: int
    """Rows of the table at its end that are image tokens."""
    dtype: torch.dtype
    prompt: int
    """Tokens before the first code."""
    length: int
    """Codes an image."""

    @property
    def padded(self) -> int:
        """Slots that a prompt takes."""
        return -(-self.prompt // BUCKET) * BUCKET

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def spec(
        self,
        batch: int,
        *,
        length: int | None = None,
        guided: bool = False,
        temperature: float = 1.0,
        path: DecodePath | None = None,
    ) -> SamplerSpec:
        first = self.config.vocab_size - self.codebook
        return SamplerSpec(
            range(first, self.config.vocab_size),
            length or self.length,
            SamplingParams(temperature=temperature, guidance_scale=3.0 if guided else 1.0),
            batch,
            (0,) if guided else None,
            bucket=BUCKET,
            path=path,
        )

    def work(self, batch: int, *, guided: bool = False) -> Work:
        """Return the bytes and operations that a batch takes at least."""
        return Work(
            self.config,
            batch,
            guided,
            prompt=self.prompt,
            length=self.length,
            codebook=self.codebook,
            dtype=self.dtype_name,
        )

    def prompts(self, count: int) -> list[Prompt]:
        """Return random prompts; the last token of all is the one in the middle of the table, which `touched` moves."""
        pick = random.Random(0)
        text, last = range(1, self.config.vocab_size - self.codebook), self.config.vocab_size // 2
        return [Prompt(str(row), (*pick.choices(text, k=self.prompt - 1), last)) for row in range(count)]

    def build(self, device: torch.device) -> Transformer:
        """Return the model, its weights made on the device."""
        with torch.device("meta"):
            model = Transformer(self.config).to(self.dtype)
        model.to_empty(device=device)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(0 if name.endswith("bias") else 1)
                else:
                    deviation = 1.0 if name.startswith("tok_embeddings") else parameter.shape[1] ** -0.5
                    parameter.normal_(0.0, deviation, generator=generator)
        return model.requires_grad_(False).eval()


def large(kit: Kit, model_norm: str = "default_layer_norm") -> Subject:
    """Return the registered 1B shape with 66,823 rows in bfloat16; where the kit is small, a model of its outline."""
    if kit.small:
        fields = {"hidden_dim": 96, "n_layers": 2, "n_heads": 4, "seq_len": 256, "vocab_size": 600}
        config = _config({**fields, "model_norm": model_norm})
        return Subject("small bf16", config, codebook=80, dtype=torch.bfloat16, prompt=12, length=40)
    config = widened("open_lm_1b", 66_823).model_copy(update={"model_norm": model_norm})
    return Subject("1B bf16", config, codebook=16_384, dtype=torch.bfloat16, prompt=36, length=1_024)


def exact(kit: Kit, model_norm: str = "default_layer_norm") -> Subject:
    """Return a model in float32, whose codes may be compared one by one."""
    width, layers = (96, 2) if kit.small else (512, 8)
    fields = {"hidden_dim": width, "n_layers": layers, "n_heads": 4, "seq_len": 256, "vocab_size": 6_000}
    config = _config({**fields, "model_norm": model_norm})
    return Subject("float32", config, codebook=1_000, dtype=torch.float32, prompt=12, length=8)


def _config(fields: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate({**fields, "post_embed_norm": False, "weight_tying": False})


def codes_of(model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec) -> Tensor:  # [len(prompts), length]
    """Return all codes, on the CPU."""
    codes = torch.empty(len(prompts), spec.length, dtype=torch.int64)
    for samples in generate(model, prompts, spec):
        codes[list(samples.indices)] = samples.codes.cpu()
    return codes


class Enough(Exception):
    """Ends the drawing of a batch: what was wanted has been seen."""


def draw_some(model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec, steps: int) -> None:
    """Draw so many codes of each prompt in buffers for whole images."""
    Steps(torch.device("cpu")).draw(model, prompts, spec, until=steps)


class Steps:
    """When each step of a batch ended, by the clock of the device that ran it."""

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._on_card:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def draw(
        self, model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec, until: int | None = None
    ) -> Tensor | None:
        """Draw one batch and mark its steps; with `until` stop after so many, and return nothing."""

        def on_step(_: int) -> None:
            self.mark()
            if len(self._marks) == until:
                raise Enough

        try:
            return torch.cat([samples.codes for samples in generate(model, prompts, spec, on_step)])
        except Enough:
            return None

    def seconds(self) -> list[float]:
        """Return what step 1, 2, … took: the one before, that of the prompts, has no beginning."""
        if self._on_card:
            torch.cuda.synchronize()
            return [first.elapsed_time(second) / 1e3 for first, second in pairwise(self._marks)]
        return [second - first for first, second in pairwise(self._marks)]


AROUND = 8
"""Steps on either side whose median is the cost at a position."""


@dataclass(frozen=True)
class Course:
    """What the steps of one batch took."""

    subject: Subject
    seconds: list[float]
    """Of step 1, 2, …"""

    def at(self, live: int) -> float | None:
        """Return the median step near the one that attends to `live` tokens; None where none came near."""
        place = live - self.subject.prompt - 1
        near = self.seconds[max(0, place - AROUND) : place + AROUND]
        return statistics.median(near) if place < len(self.seconds) + AROUND and near else None

    @property
    def captures(self) -> list[float]:
        """Seconds by which those steps were longer than the following ones that were the first to attend to a span."""
        padded = self.subject.padded
        first = [step for step in range(1, len(self.seconds) + 1) if step == 1 or (padded + step - 1) % SPAN == 0]
        found = []
        for step in first:
            others = self.seconds[step : step + AROUND]
            if others:
                found.append(max(0.0, self.seconds[step - 1] - statistics.median(others)))
        return found


def shortened(subject: Subject, length: int) -> Subject:
    return replace(subject, length=length)
