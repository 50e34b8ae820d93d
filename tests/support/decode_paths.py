"""Decoding steps of each path, one token of every row after the other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evalsvc.models import DecodePath, StepShape, Transformer, decoding
from evalsvc.models.layer import EAGER

PATHS: tuple[DecodePath, ...] = ("plain", "packed", "compiled", "graph")


def leave_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the compiled path by the functions that would be compiled."""
    monkeypatch.setitem(decoding.PATHS, "compiled", replace(decoding.PATHS["compiled"], kernels=lambda: EAGER))
    monkeypatch.setattr(decoding, "compiled_attention", lambda *shape: decoding.blocked_attention)


@torch.inference_mode()
def stepped_logits(
    model: Transformer,
    path: DecodePath,
    ids: Tensor,  # [R, T] int64
    prompt: int,
    *,
    codes: range | None = None,
    mask: Tensor | None = None,  # [R, T] bool
    cache_dtype: torch.dtype | None = None,
) -> Tensor:  # [R, T - prompt, codes] float32
    """The logits after each token behind the first `prompt`, whose rows are loaded in two parts."""
    rows, length = ids.shape
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    shape = StepShape(rows, codes or range(model.config.vocab_size), length, path, cache_dtype=cache_dtype)
    model.packed = None
    step = model.decoding(shape)
    parts = []
    for part in (slice(0, 1), slice(1, rows)):
        cache = model.new_cache(part.stop - part.start, prompt, cache_dtype)
        model.hidden(ids[part, :prompt], mask=mask[part, :prompt], positions=positions[part, :prompt], cache=cache)
        parts.append((part, cache))
    for _ in range(2):  # the second batch must not see the first
        step.begin(parts, mask[:, :prompt])
        logits = torch.stack([step(ids[:, slot], positions[:, slot], slot) for slot in range(prompt, length)], dim=1)
    return logits
