"""Image rows that are trained towards the text of their captions, as a file with which a training may begin.

Source: Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive Text-to-Image
Generation" (arXiv 2311.16201), section 3.2: bags of words, CLIP's loss with a learned temperature, batches of 1,024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite
from evalsvc.files.atomic import write_whole
from evalsvc.metrics.contrastive import MAX_SCALE
from evalsvc.tasks.alignment.pair_measures import Tables, TokenPairs, bag_means, flattened

FIRST_TEMPERATURE = 0.07
"""Initial temperature, as in CLIP (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True)
class AlignmentRecipe:
    """Everything that decides the rows besides the tables and the pairs."""

    steps: int
    batch: int = 1024
    """Number of pairs in a step; all pairs if there are fewer."""
    rate: float = 0.03
    """Learning rate of Adam for the rows, in units of the text rows' root mean square entry, and for the logarithm of
    the temperature."""
    seed: int = 0
    """Seed of the batches."""


@dataclass(frozen=True)
class AlignedRows:
    tables: Tables
    """Tables with the trained image rows. Codes that occur in no pair keep their rows."""
    losses: list[float]
    """Loss of each step's batch in nats, before the step."""
    scales: list[float]
    """1 / temperature before each step, and at the end."""


def align(tables: Tables, pairs: TokenPairs, recipe: AlignmentRecipe) -> AlignedRows:
    """Train the image rows and the temperature by Adam in float32.

    The loss does not depend on the rows' common length, which at the end becomes the root mean square length of the
    text rows. The same seed and number of threads give the same rows. Raises NonFinite, with the step.
    """
    length = _root_mean_square_length(tables.candidates)
    unit = length / math.sqrt(tables.text.shape[1]) or 1.0
    codes = sorted(set(chain.from_iterable(pairs.codes)))
    place = torch.zeros(len(tables.image), dtype=torch.int64)
    place[codes] = torch.arange(len(codes))
    rows = (tables.image[codes].float() / unit).requires_grad_()
    log_scale = torch.tensor(math.log(1 / FIRST_TEMPERATURE), requires_grad=True)
    optimizer = torch.optim.Adam([rows, log_scale], lr=recipe.rate)
    losses, scales = [], [log_scale.exp().item()]
    for step, batch in enumerate(_draws(pairs, recipe)):
        texts = bag_means(tables.text, batch.texts).float()
        images = functional.normalize(_means(rows, place, batch.codes), dim=1)
        loss = _clip_loss(images, texts, log_scale.exp())
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise NonFinite(f"the alignment's loss is {losses[-1]} at step {step}; lower `rate`")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(max=math.log(MAX_SCALE))
        scales.append(log_scale.exp().item())
    image = tables.image.float().clone()
    image[codes] = rows.detach() * (length / _root_mean_square_length(rows.detach()))
    return AlignedRows(replace(tables, image=image), losses, scales)


def write_rows(path: Path, values: Tensor, rows: Sequence[int]) -> None:
    """Write image rows in the order of the codes, float32 [K, D], with the row of the table for each code."""
    write_whole(path, save({"values": values.contiguous(), "rows": torch.tensor(rows)}), mode=0o644)


@torch.no_grad()
def put_rows(table: Tensor, path: Path) -> None:
    """Write the rows in the file `path` into a table, in place.

    Raises:
        CheckpointMismatch: the file does not hold image rows, or those of another table.
        CheckpointError: as `read_weights`.
    """
    tensors = read_weights(path).tensors
    values, rows = tensors.get("values"), tensors.get("rows")
    if values is None or rows is None or values.shape[1:] != table.shape[1:] or int(rows.max()) >= len(table):
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointMismatch(
            f"{path} holds {shapes}, and the table is {list(table.shape)}; give rows that were aligned for this layout"
        )
    table[rows] = values.to(table)


def _clip_loss(
    images: Tensor,  # [B, D], of length one
    texts: Tensor,  # [B, D], of length one
    scale: Tensor,  # []
) -> Tensor:  # []
    """Compute the value of `contrastive.clip_loss`, with a gradient."""
    logits = scale * images @ texts.T
    return (logits.logsumexp(0) + logits.logsumexp(1)).mean() / 2 - logits.diagonal().mean()


def _means(
    rows: Tensor,  # [R, D]
    place: Tensor,  # [K] int64, the row of each code
    codes: Sequence[Sequence[int]],
) -> Tensor:  # [B, D]
    flat, starts = flattened(codes)
    return functional.embedding_bag(place[flat], rows, starts, mode="mean")


def _draws(pairs: TokenPairs, recipe: AlignmentRecipe) -> Iterator[TokenPairs]:
    """Yield a batch per step: all pairs in a new random order in each round, without the remainder of a round."""
    generator = torch.Generator().manual_seed(recipe.seed)
    size = min(recipe.batch, len(pairs))
    order: list[int] = []
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.randperm(len(pairs), generator=generator).tolist()
        yield pairs.take(order[:size])
        order = order[size:]


def _root_mean_square_length(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows.float(), dim=1).double().square().mean().sqrt())
