"""The learned part of `alignment`: image rows that are trained towards the text of their captions.

Source: Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help Auto-regressive Text-to-Image
Generation" (arXiv 2311.16201), section 3.2: bags of words, CLIP's loss with a learned temperature, batches of 1,024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.errors import NonFinite
from evalsvc.metrics.contrastive import MAX_SCALE
from evalsvc.tasks.alignment.pair_measures import Tables, bag_means, flattened
from evalsvc.tasks.alignment.spec import Learning
from evalsvc.tasks.alignment.token_pairs import TokenPairs

FIRST_TEMPERATURE = 0.07
"""Initial temperature, as in CLIP (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True)
class Learned:
    tables: Tables
    """Tables with the trained image rows. Codes that occur in no pair keep their rows."""
    trained: list[int]
    """Codes whose rows were trained."""
    losses: list[float]
    """Loss of each step's batch in nats, before the step."""
    scales: list[float]
    """1 / temperature before each step."""
    scale: float
    """1 / temperature at the end."""
    length: float
    """Root mean square length of the trained rows, which equals that of the text rows."""


def learn(tables: Tables, pairs: TokenPairs, training: Learning, report: Callable[[int], None]) -> Learned:
    """Train the image rows and the temperature by Adam in float32.

    The loss does not depend on the rows' common length, which is set at the end. The same seed, device and number of
    threads give the same rows. `report` gets the number of finished steps. Raises NonFinite, with the step.
    """
    length = _root_mean_square_length(tables.candidates)
    unit = length / math.sqrt(tables.text.shape[1]) or 1.0
    codes = sorted(set(chain.from_iterable(pairs.codes)))
    chosen = torch.tensor(codes, device=tables.image.device)
    place = torch.zeros(len(tables.image), dtype=torch.int64)
    place[codes] = torch.arange(len(codes))
    rows = (tables.image[chosen].float() / unit).requires_grad_()
    log_scale = torch.tensor(math.log(1 / FIRST_TEMPERATURE), device=rows.device, requires_grad=True)
    optimizer = torch.optim.Adam([rows, log_scale], lr=training.rate)
    losses, scales = [], []
    for step, batch in enumerate(_draws(pairs, training)):
        report(step)
        texts = bag_means(tables.text, batch.texts).to(rows)
        images = functional.normalize(_means(rows, place, batch.codes), dim=1)
        loss = _clip_loss(images, texts, log_scale.exp())
        losses.append(loss.item())
        scales.append(log_scale.exp().item())
        if not math.isfinite(losses[-1]):
            raise NonFinite(f"the alignment's loss is {losses[-1]} at step {step}; lower `learn.rate`")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(max=math.log(MAX_SCALE))
    report(training.steps)
    image = tables.image.float().clone()
    image[chosen] = rows.detach() * (length / _root_mean_square_length(rows.detach()))
    return Learned(replace(tables, image=image), codes, losses, scales, log_scale.exp().item(), length)


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
    return functional.embedding_bag(place[flat].to(rows.device), rows, starts.to(rows.device), mode="mean")


def _draws(pairs: TokenPairs, training: Learning) -> Iterator[TokenPairs]:
    """Yield a batch per step: all pairs in a new random order in each round, without the remainder of a round."""
    generator = torch.Generator().manual_seed(training.seed)
    size = min(training.batch, len(pairs))
    order: list[int] = []
    for _ in range(training.steps):
        if len(order) < size:
            order = torch.randperm(len(pairs), generator=generator).tolist()
        yield pairs.take(order[:size])
        order = order[size:]


def _root_mean_square_length(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows.float(), dim=1).double().square().mean().sqrt())
