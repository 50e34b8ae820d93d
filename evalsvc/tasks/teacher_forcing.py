"""Running whole sequences through a model and summing their losses: the part of the loss task that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from evalsvc.checkpoints import CheckpointRef
from evalsvc.errors import NonFinite
from evalsvc.layout import VocabularyLayout
from evalsvc.metrics.token_loss import TokenLosses, belongs, chunk_rows, token_losses
from evalsvc.models import Transformer
from evalsvc.models.loading import nonfinite_cause
from evalsvc.scoring.packing import token_batches

COLUMNS = (
    "n_text",
    "n_image",
    "n_special",
    "nll_text",
    "nll_image",
    "nll_special",
    "within_text",
    "within_image",
    "image_mass",
)
"""Per sequence: targets of each type, their summed losses over all ids, over the ids of their own type, and the summed
probability of image ids where a text token is due. Losses in nats."""


class Work(Protocol):
    """What of a `Context` this needs."""

    checkpoint: CheckpointRef
    device: str
    batch_tokens: int
    report: Callable[[int], None]


def sequence_sums(
    context: Work,
    model: Transformer,
    layout: VocabularyLayout,
    sequences: Sequence[Sequence[int]],
    names: Sequence[str],
) -> dict[str, list[float]]:
    """`COLUMNS`, each with one number a sequence in the given order.

    Every position after the first is a target unless it is the pad. `names` says what messages call each sequence.
    A sequence without targets costs nothing and has zeros.

    Raises:
        NonFinite: names the checkpoint, the sequence and the first part of the model that is at fault.
    """
    sums = torch.zeros(len(sequences), len(COLUMNS), dtype=torch.float64)
    done = 0
    context.report(done)
    for batch in token_batches([len(sequence) for sequence in sequences], context.batch_tokens):
        ids, lengths = _pad([sequences[index] for index in batch], context.device)
        target_mask = _target_mask(ids, lengths, layout.pad_id)
        if bool(target_mask.any()):
            with torch.inference_mode():
                losses = _batch_losses(model, layout, ids, target_mask)
            owners = target_mask.nonzero()[:, 0]
            targets = ids[:, 1:][target_mask]
            bad = owners[~losses.nll.isfinite()]
            if len(bad):
                row = int(bad[0])
                raise _not_finite(context, model, ids[row : row + 1, : int(lengths[row])], names[batch[row]])
            columns = _columns(losses, targets, layout)
            sums[batch] = columns.new_zeros(len(batch), len(COLUMNS)).index_add_(0, owners, columns).cpu()
        done += len(batch)
        context.report(done)
    return {name: column.tolist() for name, column in zip(COLUMNS, sums.unbind(1), strict=True)}


def _pad(sequences: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """ids [B, T] int64 and lengths [B]. What follows a sequence is never seen by it, so any id will do there."""
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.zeros(len(sequences), max(lengths), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids.to(device), torch.tensor(lengths, device=device)


def _target_mask(ids: Tensor, lengths: Tensor, pad_id: int | None) -> Tensor:
    """bool [B, T - 1]: which of the ids after the first are targets."""
    real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return real if pad_id is None else real & (ids[:, 1:] != pad_id)


def _batch_losses(model: Transformer, layout: VocabularyLayout, ids: Tensor, target_mask: Tensor) -> TokenLosses:
    hidden = model.hidden(ids[:, :-1])[target_mask]  # [N, D]: the head sees nothing that is padding
    chunk = chunk_rows(model.config.vocab_size)
    return token_losses(hidden, ids[:, 1:][target_mask], model.head, layout.text_ids, layout.image_range, chunk)


def _columns(losses: TokenLosses, targets: Tensor, layout: VocabularyLayout) -> Tensor:
    """float64 [N, len(COLUMNS)]: each target's share of its sequence's sums."""
    text, image = belongs(targets, layout.text_ids), belongs(targets, layout.image_range)
    types = torch.stack((text, image, ~text & ~image), dim=1)  # [N, 3]
    nll = torch.where(types, losses.nll[:, None], 0)
    within = torch.where(types[:, :2], losses.within[:, None], 0)
    mass = torch.where(text, losses.image_log_mass.double().exp(), 0)
    return torch.cat((types.double(), nll.double(), within.double(), mass[:, None]), dim=1)


def _not_finite(context: Work, model: Transformer, ids: Tensor, name: str) -> NonFinite:
    cause = nonfinite_cause(model, ids)
    return NonFinite(f"{context.checkpoint.label}: the loss of {name} is not finite; {cause}")
