"""Small models of random weights, in evalsvc's own arithmetic."""

from typing import Any

import torch

from evalsvc.models import Transformer
from evalsvc.spec.model_config import ModelConfig

SHAPE: dict[str, Any] = {"hidden_dim": 24, "n_layers": 2, "n_heads": 3, "seq_len": 32, "vocab_size": 40}
SHAPE |= {"post_embed_norm": False, "weight_tying": False}


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(SHAPE | changes)


def small_model(dtype: torch.dtype = torch.float32, kind: Any = Transformer, **changes: Any) -> Transformer:
    """A model in which every parameter has an effect; equal for equal arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(small_config(**changes)).requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)
