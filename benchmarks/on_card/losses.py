"""The loss of whole image–caption sequences in tokens a second, against Hugging Face's Llama with all logits."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from side_by_side import interleaved, medians, ratios

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.models import Transformer
from evalsvc.tasks.loss.teacher_forcing import sequence_sums
from on_card.kit import Kit, Row, at_most, figure, left_out
from on_card.rates import product_rate
from on_card.twins import BILLION, TINY, Shape, build_llama, build_transformer, missing

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

OURS, THEIRS = "evalsvc", "transformers, all logits"
BATCH_TOKENS = 8_192
"""As the service has it."""
CPU_ERROR, PEER_ERROR = 1e-4, 1e-5
"""Of the loss of a sequence in float32, relative."""
TURNS = 3
LOGIT_BYTES = 20
"""That the peer holds for one logit: bfloat16, float32, what it shifts and what the softmax leaves, about."""

Sequences = Sequence[Sequence[int]]


@dataclass
class Work:
    """What `sequence_sums` needs of a task's context."""

    device: str
    checkpoint: CheckpointRef = field(default_factory=lambda: CheckpointRef(""))
    batch_tokens: int = BATCH_TOKENS
    report: Callable[[int], None] = lambda done: None


def run(kit: Kit) -> Iterator[Row]:
    """Compare losses of a small float32 model with the CPU's and the peer's, then time a large one in bfloat16."""
    lacking = missing("transformers")
    yield from _compare(kit, lacking)
    shape = TINY if kit.small else BILLION
    model = build_transformer(shape, kit.device, torch.bfloat16)
    sequences = _draw(shape, 4 if kit.small else 32, text=128 if shape is BILLION else 32)
    tokens = sum(map(len, sequences))
    sides: dict[str, Callable[[], object]] = {OURS: lambda: _our_losses(model, shape, sequences)}
    if lacking:
        yield left_out("against Hugging Face's Llama", lacking)
    else:
        batch = _peer_batch(kit, shape, len(sequences[0]))
        theirs = build_llama(shape, model)
        sides[THEIRS] = partial(_their_losses, theirs, sequences, batch)
    for side in sides.values():  # warm-up
        side()
    times = interleaved(sides, TURNS)
    operations = _operations(shape, model, sequences)
    for name, taken in medians(times).items():
        yield figure(f"{shape.name} bf16, {name}: tokens/s", tokens / taken, "tokens/s", seconds=times[name])
        share = operations / taken / product_rate(kit.device, torch.bfloat16)
        yield figure(f"{shape.name} bf16, {name}: of product rate", share, "", operations=operations)
    for ratio in ratios(times, OURS).values():
        yield figure(f"{shape.name} bf16: Hugging Face's time over ours", ratio, "x", batch=batch)


def _compare(kit: Kit, lacking: str) -> Iterator[Row]:
    plain = build_transformer(TINY, torch.device("cpu"))
    ours = copy.deepcopy(plain).to(kit.device)
    kit.touched(ours.layers[0])
    sequences = _draw(TINY, 4, text=32)
    found = _our_losses(ours, TINY, sequences)
    yield at_most("float32: losses against the CPU's", _error(found, _our_losses(plain, TINY, sequences)), CPU_ERROR)
    if lacking:
        return
    theirs = build_llama(TINY, copy.deepcopy(plain).to(kit.device))
    error = _error(found, _their_losses(theirs, sequences, batch=1))
    yield at_most("float32: losses against Hugging Face's", error, PEER_ERROR)


def _draw(shape: Shape, count: int, text: int) -> Sequences:
    """Return captions of `text` tokens and codes in the layout's template, of random ids and all of one length."""
    draw = random.Random(0)
    layout = shape.layout
    assert layout.image is not None
    codes, ids = min(1_024, layout.image.size), layout.text.size
    made = [
        layout.sequence(draw.choices(range(ids), k=text), draw.choices(range(layout.image.size), k=codes))
        for _ in range(count)
    ]
    return [sequence.ids for sequence in made]


def _our_losses(model: Transformer, shape: Shape, sequences: Sequences) -> list[float]:
    """Return the summed loss of each sequence, as the task computes it."""
    work = Work(str(model.tok_embeddings.weight.device))
    names = [f"sequence {index}" for index in range(len(sequences))]
    sums = sequence_sums(work, model, shape.layout, sequences, names)
    return [sum(parts) for parts in zip(*(sums[f"nll_{kind}"] for kind in ("text", "image", "special")), strict=True)]


def _their_losses(model: LlamaForCausalLM, sequences: Sequences, batch: int) -> list[float]:
    """Return the summed loss of each batch of sequences, with all logits of a batch at once."""
    found = []
    with torch.inference_mode():
        for ids in torch.tensor(sequences).to(model.device).split(batch):
            mean = model(ids, labels=ids, use_cache=False).loss
            found.append(mean * ids[:, 1:].numel())
        return torch.stack(found).tolist()


def _peer_batch(kit: Kit, shape: Shape, length: int) -> int:
    """Return how many sequences the peer takes at once: as many as a batch of ours, or as fit."""
    batch = max(1, BATCH_TOKENS // length)
    while batch > 1 and LOGIT_BYTES * batch * length * shape.rows > kit.free_bytes():
        batch //= 2
    return batch


def _operations(shape: Shape, model: Transformer, sequences: Sequences) -> int:
    """Count two operations a weight and token, and causal attention over half the square."""
    tokens, length = sum(map(len, sequences)), len(sequences[0])
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if name != "tok_embeddings.weight")
    return tokens * (2 * weights + shape.n_layers * 2 * length * shape.hidden_dim)


def _error(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(mine - other) / abs(other) for mine, other in zip(found, expected, strict=True))
