"""The loss of a batch, and its parts by the kind of the predicted token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from evalsvc.models import Transformer
from evalsvc.spec.layout import VocabularyLayout
from trainer.sequences import IGNORED, Batch

KINDS = ("text", "image", "special", "replay")
"""Kinds of predicted tokens: of captions, of images, special tokens, and tokens of plain text."""
TEXT, IMAGE, SPECIAL, REPLAY = range(len(KINDS))


@dataclass(frozen=True)
class Part:
    """The predicted tokens of one kind in a batch."""

    loss: float
    """Mean loss in nats per token."""
    tokens: int


@dataclass(frozen=True)
class StepLoss:
    """The loss of a batch."""

    total: Tensor
    """Mean over all predicted tokens, with its gradient, []: the mean of the parts, weighted by their tokens."""
    parts: Mapping[str, Part]
    """Parts by kind, without kinds that the batch does not have."""

    @property
    def tokens(self) -> int:
        """Return the number of predicted tokens."""
        return sum(part.tokens for part in self.parts.values())


class Kinds:
    """The kind of each row of the table."""

    def __init__(self, layout: VocabularyLayout, device: str) -> None:
        """Read a resolved layout. Rows of no block are never predicted in training and count as special."""
        assert layout.rows is not None
        self.of_row = torch.full((layout.rows,), SPECIAL, dtype=torch.int64)
        for kind, rows in ((TEXT, layout.text_ids), (IMAGE, layout.image_range)):
            if rows is not None:
                self.of_row[rows.start : rows.stop] = kind
        self.of_row = self.of_row.to(device)

    def of(self, batch: Batch) -> Tensor:  # [B, T] int64
        """Return the kind of each target; any kind where there is no target."""
        kinds = self.of_row[batch.targets.clamp(min=0)]
        kinds[batch.replay_rows] = REPLAY
        return kinds


def next_token_loss(model: Transformer, batch: Batch, kinds: Kinds) -> StepLoss:
    """Compute the loss by the model's own forward pass, with the output layer at positions that have a target only.

    No token attends to the padding, which is on the right.
    """
    real = batch.targets != IGNORED
    logits = model.head(model.hidden(batch.ids)[real])
    nll = functional.cross_entropy(logits, batch.targets[real], reduction="none")
    return StepLoss(nll.mean(), _parts(nll.detach().double(), kinds.of(batch)[real]))


def _parts(nll: Tensor, kinds: Tensor) -> dict[str, Part]:
    """Return the mean of the losses [N] float64 by their kinds [N]."""
    chosen = {name: nll[kinds == kind] for kind, name in enumerate(KINDS)}
    return {name: Part(float(losses.mean()), len(losses)) for name, losses in chosen.items() if len(losses)}
