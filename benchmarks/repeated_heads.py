"""The Llama whose every query head has its own keys and values, with the outputs of one whose heads share them."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def repeat_heads(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a Llama with a copy of the shared keys' and values' weights for every query head."""
    config = model.config.to_dict()
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    with torch.device("meta"):
        repeated = LlamaForCausalLM(LlamaConfig(**{**config, "num_key_value_heads": heads}))
    weights = {}
    for name, tensor in model.state_dict().items():
        is_shared = name.endswith(("k_proj.weight", "v_proj.weight"))
        weights[name] = _repeated(tensor, shared, heads // shared) if is_shared else tensor
    repeated.load_state_dict(weights, strict=True, assign=True)
    repeated.tie_weights()
    repeated.model.rotary_emb = model.model.rotary_emb  # its table is no weight, and has no values on `meta`
    return repeated


def _repeated(weight: torch.Tensor, heads: int, times: int) -> torch.Tensor:
    """Return the rows of each head, repeated `times` times."""
    return weight.unflatten(0, (heads, -1)).repeat_interleave(times, dim=0).flatten(0, 1)
