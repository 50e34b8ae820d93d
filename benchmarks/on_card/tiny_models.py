"""Models and prompts made from a seed on the CPU, and what is sampled of them: for the sections of kind `right`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evalsvc.models import Transformer
from evalsvc.sampling import Prompt, SamplerSpec, generate
from evalsvc.spec.model_config import ModelConfig
from on_card.kit import Kit

TEXT_ROWS = 64
"""Rows of text in a tiny table; those of image codes follow."""
UNCONDITIONAL = (1, 2)
"""The prompt without text, for guidance."""
MOST_THREADS = 4
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "grouped heads, q/k norms": {"n_kv_heads": 2, "qk_norm": True, "qk_norm_per_head": True, "model_norm": "rms_norm"},
    "one head of keys, norms after": {"n_kv_heads": 1, "norm_place": "after", "model_norm": "rms_norm"},
    "parallel residual, partial rotation": {
        "parallel_residual": True,
        "rotary_dims": 4,
        "attention_bias": True,
        "output_bias": True,
    },
    "GeGLU, gain + 1": {"ffn_type": "gemma_geglu", "model_norm": "rms_norm_plus_one"},
}
"""Changes of a configuration, each by what it asks that open_lm's models do not."""


@contextmanager
def few_threads(kit: Kit) -> Iterator[None]:
    """Compute on few CPU threads, on one in small.

    The kernels of a tiny model are so short that threads wait for each other longer than they work: on two cores that
    others use too, two threads take thirty times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if kit.small else min(before, MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiny_model(
    device: torch.device,
    dtype: torch.dtype,
    *,
    codes: int = 64,
    hidden_dim: int = 32,
    n_layers: int = 2,
    n_heads: int = 4,
    kind: str = "rotary",
    norm: str = "default_layer_norm",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Transformer:
    """Return a model of random weights whose logits are spread like a trained model's; the same on every device."""
    config = ModelConfig.model_validate(
        {
            "hidden_dim": hidden_dim,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "seq_len": 512,
            "vocab_size": TEXT_ROWS + codes,
            "post_embed_norm": False,
            "weight_tying": False,
            "positional_embedding_type": kind,
            "model_norm": norm,
            **(changes or {}),
        }
    )
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        else:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.output.weight.mul_(2)
    return model.to(dtype).to(device)


def text_prompts(lengths: Sequence[int]) -> list[Prompt]:
    """Return a prompt of random text ids for each length."""
    pick = random.Random(0)
    return [
        Prompt(f"prompt {row}", tuple(pick.choices(range(TEXT_ROWS), k=length))) for row, length in enumerate(lengths)
    ]


def codes_of(
    model: Transformer, prompts: Sequence[Prompt], spec: SamplerSpec
) -> Tensor:  # [prompts, spec.length] int64, on the CPU
    """Sample all prompts."""
    codes = torch.full((len(prompts), spec.length), -1)
    for samples in generate(model, prompts, spec):
        codes[list(samples.indices)] = samples.codes.cpu()
    return codes


def share_equal(left: Tensor, right: Tensor) -> float:
    """Return the share of equal codes."""
    return float((left == right).double().mean())


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the L2 norm of the difference over that of `exact`, in float64 on the CPU."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    return float((found - exact).norm() / exact.norm())
