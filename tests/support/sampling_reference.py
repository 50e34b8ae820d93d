"""Sampling written for a reader and not for speed: one prompt, one code, one number at a time, without a cache."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
from small_models import small_config

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams

WORD = 2**64


def tiny_model(kind: str = "rotary", vocab_size: int = 40, hidden_dim: int = 32, dtype: str = "float64") -> Transformer:
    shape = {"hidden_dim": hidden_dim, "n_heads": 4, "seq_len": 64, "vocab_size": vocab_size}
    config = small_config(**shape, positional_embedding_type=kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config).requires_grad_(False).eval()
        model.output.weight.normal_(std=hidden_dim**-0.5)
    return model.to(getattr(torch, dtype))


def make_prompts(count: int, longest: int = 9) -> list[Prompt]:
    pick = random.Random(0)
    return [Prompt(f"p{row}", tuple(pick.choices(range(20), k=1 + row % longest))) for row in range(count)]


def splitmix64(state: int) -> int:
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def uniform(seed: int, prompt_id: str, position: int, code: int) -> float:
    salt = seed.to_bytes(8, "little")
    key = int.from_bytes(blake2b(prompt_id.encode(), digest_size=8, salt=salt).digest(), "little")
    bits = splitmix64((key + (position * 2**26 + code + 1) * 0x9E3779B97F4A7C15) % WORD)
    return ((bits >> 12) + 0.5) / 2**52


def probabilities(conditional: Sequence[float], unconditional: Any, params: SamplingParams) -> list[float]:
    """What a code is drawn from: guidance, temperature, top-k, top-p, each by its definition."""
    logits = list(conditional)
    if unconditional is not None:
        logits = [u + params.guidance_scale * (c - u) for c, u in zip(conditional, unconditional, strict=True)]
    weights = softmax([logit / params.temperature for logit in logits])
    order = sorted(range(len(weights)), key=lambda code: -weights[code])
    kept = order[: params.top_k]
    if params.top_p is not None:
        total, sum_kept, nucleus = sum(weights[code] for code in kept), 0.0, []
        for code in kept:
            nucleus.append(code)
            sum_kept += weights[code]
            if sum_kept >= params.top_p * total:
                break
        kept = nucleus
    total = sum(weights[code] for code in kept)
    return [weights[code] / total if code in kept else 0.0 for code in range(len(weights))]


def softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def image_logits(model: Transformer, spec: SamplerSpec, ids: Sequence[int]) -> list[float]:
    logits = model(torch.tensor([list(ids)]))[0, -1].tolist()
    return [logits[row] for row in spec.image_ids]


def step_probabilities(model: Transformer, spec: SamplerSpec, prompt: Prompt, codes: Sequence[int]) -> list[float]:
    rows = []
    for count, code in enumerate(codes, 1):
        rows.append(spec.image_ids[code])
        if spec.row_end is not None and count % spec.row_end[1] == 0:
            rows.append(spec.row_end[0])
    without = spec.unconditional if prompt.unconditional is None else prompt.unconditional
    conditional = image_logits(model, spec, [*prompt.ids, *rows])
    unconditional = image_logits(model, spec, [*(without or ()), *rows]) if spec.params.guided else None
    return probabilities(conditional, unconditional, spec.params)


def codes_of(model: Transformer, spec: SamplerSpec, prompt: Prompt) -> list[int]:
    """The codes of one prompt: at each position the largest of ln p + Gumbel noise."""
    codes: list[int] = []
    for position in range(spec.length):
        if spec.params.temperature == 0:
            codes.append(likeliest(model, spec, prompt, codes))
            continue
        scores = [
            math.log(p) - math.log(-math.log(uniform(spec.params.seed, prompt.id, position, code)))
            if p > 0
            else -math.inf
            for code, p in enumerate(step_probabilities(model, spec, prompt, codes))
        ]
        codes.append(scores.index(max(scores)))
    return codes


def likeliest(model: Transformer, spec: SamplerSpec, prompt: Prompt, codes: Sequence[int]) -> int:
    warm = replace(spec, params=SamplingParams(guidance_scale=spec.params.guidance_scale))
    weights = step_probabilities(model, warm, prompt, codes)
    return weights.index(max(weights))


def chi_square_p(counts: Sequence[float], expected: Sequence[float]) -> float:
    """Probability of counts at least this far from what is expected; rare outcomes are counted together."""
    pairs = [(count, mean) for count, mean in zip(counts, expected, strict=True) if mean >= 5]
    rare = [sum(counts) - sum(count for count, _ in pairs), sum(expected) - sum(mean for _, mean in pairs)]
    if rare[1] >= 5:
        pairs.append((rare[0], rare[1]))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    freedom = torch.tensor((len(pairs) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))
