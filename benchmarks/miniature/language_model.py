"""The miniature's language model: trained on text, then widened and trained on captioned digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.model_config import ModelConfig

SEQUENCE = 132
"""Longest sequence: a held-out text of 128 tokens and its four markers."""
SHAPE: dict[str, Any] = {
    "hidden_dim": 96,
    "n_layers": 3,
    "n_heads": 4,
    "seq_len": SEQUENCE,
    "post_embed_norm": False,
    "weight_tying": False,
    "model_norm": "default_layer_norm",
    "qk_norm": False,
    "positional_embedding_type": "rotary",
    "ffn_type": "swiglu",
}

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARMUP = 40
BATCH = 32
"""Captioned digits a step."""
DROPPED = 0.1
"""Share of the captions that are left out, so that there is an unconditional model for guidance."""
RUN_FLOOR = 0.03
"""Of the learning rate at the end, as a share of the highest."""
TEXT_BATCH, TEXT_LENGTH, TEXT_RATE, TEXT_FLOOR = 24, 128, 4e-3, 0.05


def build(rows: int, seed: int) -> Transformer:
    """A model with open_lm's initialisation: normal, one over the square root of the width, less in deeper layers."""
    model = Transformer(ModelConfig(**SHAPE, vocab_size=rows))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            depth = 2 * (int(name.split(".")[1]) + 1) if name.endswith(("out_proj.weight", "w3.weight")) else 1
            std = (parameter.shape[1] * depth) ** -0.5
            nn.init.trunc_normal_(parameter, std=std, a=-3 * std, b=3 * std, generator=generator)
    return model


def widen(narrow: dict[str, Tensor], model: Transformer) -> None:
    """Put a text model's weights into `model`, whose further rows keep their initialisation."""
    state = model.state_dict()
    for name, tensor in narrow.items():
        state[name][: len(tensor)] = tensor
    model.load_state_dict(state)


class Schedule:
    """AdamW with warm-up, cosine to `floor` times the rate, and clipped gradients."""

    def __init__(self, model: nn.Module, steps: int, rate: float, floor: float) -> None:
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.parameters = matrices + others
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
        self.steps, self.rate, self.floor = steps, rate, floor

    def step(self, index: int, loss: Tensor) -> None:
        """Update after step `index`, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * index / self.steps))
        rate = self.rate * min((index + 1) / WARMUP, self.floor + (1 - self.floor) * cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()


# text


def windows(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:  # [batch, length + 1]
    starts = torch.randint(len(tokens) - length, (batch,), generator=generator)
    return tokens[starts[:, None] + torch.arange(length + 1)]


def pretrain(tokens: Tensor, rows: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Train on random windows of a stream of text; returns the weights."""
    model = build(rows, seed)
    schedule = Schedule(model, steps, rate=TEXT_RATE, floor=TEXT_FLOOR)
    generator = torch.Generator().manual_seed(seed)
    for index in range(steps):
        ids = windows(tokens, TEXT_BATCH, TEXT_LENGTH, generator)
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        schedule.step(index, loss)
        if index % 50 == 0 or index == steps - 1:
            print(f"text step {index}: loss {loss.item():.3f}", flush=True)
    return model.state_dict()


# images


def pad(sequences: list[list[int]], pad_id: int) -> Tensor:  # [B, T] int64
    width = max(map(len, sequences))
    return torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in sequences])


def next_token_loss(model: Transformer, ids: Tensor, pad_id: int) -> Tensor:
    """Mean over all targets but padding. The padding is on the right, where no real token sees it."""
    hidden, targets = model.hidden(ids[:, :-1]), ids[:, 1:]
    real = targets != pad_id
    return functional.cross_entropy(model.head(hidden[real]), targets[real])


class Batches:
    """Captioned digits in an order that the seed alone decides, so that all runs see the same."""

    def __init__(
        self,
        layout: VocabularyLayout,
        codes: Tensor,  # [variants, images, 64] uint8
        labels: Tensor,  # [images]
        captions: list[list[list[int]]],  # [label][template] → ids
        seed: int,
    ) -> None:
        self.layout, self.codes, self.labels, self.captions = layout, codes, labels, captions
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:  # [B, T]
        """Without end: image by image in a new order each time round, each time one of its variants."""
        variants, images, _ = self.codes.shape
        queue: list[int] = []
        while True:
            while len(queue) < BATCH:
                queue += torch.randperm(images, generator=self.generator).tolist()
            drawn, queue = queue[:BATCH], queue[BATCH:]
            chosen = torch.randint(variants, (BATCH,), generator=self.generator).tolist()
            assert self.layout.pad_id is not None
            yield pad(
                [self._sequence(image, variant) for image, variant in zip(drawn, chosen, strict=True)],
                self.layout.pad_id,
            )

    def _sequence(self, image: int, variant: int) -> list[int]:
        choices = self.captions[int(self.labels[image])]
        template = int(torch.randint(len(choices), (), generator=self.generator))
        dropped = bool(torch.rand((), generator=self.generator) < DROPPED)
        text = None if dropped else choices[template]
        return self.layout.sequence(text, self.codes[variant, image].tolist()).ids


def train_run(
    model: Transformer, batches: Batches, steps: int, kept: tuple[int, ...], rate: float
) -> Iterator[tuple[int, float]]:
    """Train in place; yields (step, mean training loss since the last) at every step in `kept`, in order."""
    schedule = Schedule(model, steps, rate=rate, floor=RUN_FLOOR)
    source, losses = iter(batches), [float("nan")]
    assert batches.layout.pad_id is not None
    for index in range(steps + 1):
        if index in kept or index == steps:
            yield index, sum(losses) / len(losses)
            losses = []
        if index < steps:
            loss = next_token_loss(model, next(source), batches.layout.pad_id)
            schedule.step(index, loss)
            losses.append(loss.item())
            if index % 50 == 0:
                print(f"step {index}: loss {losses[-1]:.3f}", flush=True)


def save(state: Any, path: Path) -> None:
    """Write whole or not at all: a file that exists is a finished stage."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
