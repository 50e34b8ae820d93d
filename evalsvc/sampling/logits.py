"""From logits to codes: guidance, temperature, top-k, top-p, and the draw.

Each step is a pure function of the logits of one row, and keeps or drops codes by a threshold, never by their order:
codes with equal logits, which are common in half precision, are kept or dropped together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalsvc.models import compiled
from evalsvc.sampling.noise import counters, gumbel_of
from evalsvc.spec.sampling import SamplingParams

NUCLEUS = 1_024
"""Number of likeliest codes that are searched first for the end of a nucleus."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:  # [B, codes] each
    """Compute classifier-free guidance, u + s·(c − u) (Ho and Salimans, "Classifier-free diffusion guidance", 2022)."""
    return unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:  # [B, codes] → [B, codes], -inf where dropped
    """Keep the `top_k` largest logits, and logits equal to the smallest of these."""
    if top_k >= logits.shape[-1]:
        return logits
    return _keep(logits, logits.topk(top_k).values[:, -1:])


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:  # [B, codes] → [B, codes], -inf where dropped
    """Keep the fewest largest logits whose softmax sums to `top_p` or more, and logits equal to the smallest of these.

    Nucleus sampling (Holtzman et al., "The curious case of neural text degeneration", 2020). Summed in float64: in
    float32 the end of the nucleus would depend on how a device orders the sum. The NUCLEUS largest logits are tried
    first, since sorting all codes is the main cost.
    """
    codes = logits.shape[-1]
    total = logits.double().logsumexp(-1, keepdim=True)
    # On a GPU, sorting is faster than a transfer of whether the nucleus was found.
    for count in (NUCLEUS, codes) if logits.device.type == "cpu" and codes > 4 * NUCLEUS else (codes,):
        ordered = logits.topk(count).values if count < codes else logits.sort(descending=True).values
        probabilities = (ordered.double() - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        if count == codes or bool((before[:, -1] >= top_p).all()):
            break
    last = (before < top_p).sum(-1, keepdim=True).clamp_(min=1) - 1  # NaN logits keep no code
    return _keep(logits, ordered.gather(-1, last))


def warp(logits: Tensor, params: SamplingParams) -> Tensor:  # [B, codes] → [B, codes], -inf where dropped
    """Apply temperature, top-k and top-p: codes are drawn from the softmax of the result. Not for temperature 0."""
    if params.temperature != 1:
        logits = logits / params.temperature
    if params.top_k is not None:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p is not None:
        logits = keep_top_p(logits, params.top_p)
    return logits


def draw(
    logits: Tensor,  # [B, codes] of the conditional rows, or [2·B, codes] with the unconditional ones behind
    params: SamplingParams,
    keys: Tensor,  # [B] int64, see `noise.stream_keys`
    position: int,
    *,
    compile_noise: bool = False,
) -> tuple[Tensor, Tensor]:  # codes [B] int64, finite [B] bool
    """Draw one code per prompt; return whether its logits were finite, since NaN and +inf win every maximum.
    `compile_noise` costs seconds once, and replaces a dozen passes by one; the noise may differ in its last bit."""
    if params.guided:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, params.guidance_scale)
    if params.temperature == 0:
        best, codes = logits.max(-1)
    else:
        counts = counters(position, logits.shape[-1], logits.device)
        best, codes = (compiled(race) if compile_noise else race)(warp(logits, params), keys, counts)
    return codes, torch.isfinite(best)


def race(logits: Tensor, keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:  # [B] float64, [B] int64
    """Return the largest sum of logit and Gumbel noise in each row, and its code; `counts` are `noise.counters`."""
    best, codes = gumbel_of(keys[:, None] + counts).add_(logits).max(-1)
    return best, codes


def _keep(logits: Tensor, threshold: Tensor) -> Tensor:
    return logits.masked_fill(logits < threshold, float("-inf"))
