"""The rounding difference between two programs that compute the same model in float32, measured for its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsvc.models import Transformer
from evalsvc.models.loading import empty_model, filled

FACTOR = 8
"""Ratio of tolerances to the measured rounding: two programs round, and other sequences may round worse."""

LEAST = 1e-6
"""Smallest tolerance, for models whose rounding happens to cancel."""

MEASURED = 4
"""Number of sequences on which rounding is measured."""

NOTE = f"tolerance: {FACTOR} times the rounding of float32, measured against float64"


@dataclass(frozen=True)
class Rounding:
    """The rounding of a model in float32 on the CPU, relative to the same model in float64."""

    logit: float
    """Largest absolute difference of a logit."""
    loss: float
    """Largest absolute difference of a token's loss in nats."""

    @property
    def logit_tolerance(self) -> float:
        return max(FACTOR * self.logit, LEAST)

    @property
    def loss_tolerance(self) -> float:
        """Return the tolerance of the loss of a token, and so of any mean of such losses."""
        return max(FACTOR * self.loss, LEAST)


@torch.inference_mode()
def measure_rounding(model: Transformer, sequences: Sequence[Sequence[int]]) -> Rounding:
    """Measure the rounding of `model` on the first sequences of token ids, each with at least two ids.

    Always measured on the CPU: a device that is less exact than float32 must not widen its own tolerance.
    """
    narrow, wide = on_cpu(model, "float32"), on_cpu(model, "float64")
    logit = loss = 0.0
    for sequence in sequences[:MEASURED]:
        ids = torch.tensor([sequence])
        rounded, exact = _logits(narrow, ids), _logits(wide, ids)
        logit = max(logit, float((rounded - exact).abs().max()))
        loss = max(loss, float((_losses(rounded, ids) - _losses(exact, ids)).abs().max()))
    return Rounding(logit, loss)


def on_cpu(model: Transformer, dtype: str) -> Transformer:
    """Return a copy of a model in main memory, with the same rotary frequencies."""
    copy = empty_model(model.config, dtype, model.rotary_inv_freq_dtype)
    if model.saved_inv_freq:
        copy.use_frequencies(torch.tensor(model.saved_inv_freq))
    return filled(copy, "the model", model.state_dict().items(), dtype, "cpu")


def _logits(model: Transformer, ids: Tensor) -> Tensor:  # [T, V] float64, not rounded to float32 as by `head`
    return (model.hidden(ids)[0] @ model.output.weight.T).double()


def _losses(logits: Tensor, ids: Tensor) -> Tensor:  # [T - 1]
    return -logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
