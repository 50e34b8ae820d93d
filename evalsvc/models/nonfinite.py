"""The part of a model that computes NaN or infinity first."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.models.language_model import LanguageModel


def find_nonfinite(
    model: LanguageModel,
    ids: Tensor,  # [B, T] int64
) -> str:
    """Return the first part, in the order of the forward pass, that computes NaN or infinity for `ids`.

    Names are those of the model ("layers.2.attention"); "output" is the head; "" means that everything is finite. A sum
    of two finite parts that overflows is reported as the next norm.
    """
    first: list[str] = []

    def note(name: str, _module: nn.Module | None, _inputs: Any, output: Any) -> None:
        if not first and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            first.append(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_parts():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        note("output", None, None, model.logits(ids))
    return first[0] if first else ""


def nonfinite_cause(
    model: LanguageModel,
    ids: Tensor,  # [B, T] int64
) -> str:
    """Return the origin of NaN or infinity for `ids` and a remedy, as the end of an error message."""
    part = find_nonfinite(model, ids)
    where = f"the first part of the model with NaN or infinity is {part}" if part else "each part alone is finite"
    dtype = str(model.dtype).removeprefix("torch.")
    advice = "the run has diverged by this step" if dtype == "float32" else f"or {dtype} is too narrow: try float32"
    return f"{where}; {advice}"
