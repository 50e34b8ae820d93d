"""Exponential moving averages of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Averages:
    """Averages of tensors with several decays, in float32 or the tensors' own wider type.

    After each step, average ← decay · average + (1 - decay) · weights, beginning with the weights before the first
    step, as open_lm's averagers `ema_…` do.
    """

    def __init__(self, decays: Sequence[float], weights: Mapping[str, Tensor]) -> None:
        self.by_decay: dict[float, Tensors] = {decay: _copies(weights) for decay in decays}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Add the weights after a step."""
        for decay, averages in self.by_decay.items():
            for name, average in averages.items():
                # lerp adds the share of the difference: an average of equal weights stays equal to them.
                average.lerp_(weights[name].to(average.dtype), 1 - decay)

    def state(self) -> dict[str, Tensors]:
        """Return the content for the file from which a training resumes."""
        return {repr(decay): averages for decay, averages in self.by_decay.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the values that `state` returned for the same decays and weights."""
        for decay, averages in self.by_decay.items():
            for name, average in averages.items():
                average.copy_(state[repr(decay)][name])


def _copies(weights: Mapping[str, Tensor]) -> Tensors:
    return {
        name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name, weight in weights.items()
    }
