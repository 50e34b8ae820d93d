"""SmolLM2-135M, a real language model, as an open_lm checkpoint; and texts to ask it about.

The library is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TEXTS = (
    "Simply put, the theory of relativity states that",
    "Translate English to French:\nsea otter => loutre de mer\npeppermint => menthe poivrée\ncheese =>",
    "The capital of France is",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, ",
    "Question: What is the boiling point of water at sea level, in degrees Celsius?\nAnswer:",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36",
    "Ein Text auf Deutsch, mit Umlauten: Übermäßig große Öfen stören die Gäste im Café.",
    "A photograph of two dogs on a sofa. " * 40,
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
)


def write_open_lm(model: LlamaForCausalLM, folder: Path) -> Path:
    """The model's weights under open_lm's names, as an epoch of a training run with its configuration beside it."""
    config = model.config
    fields = {"hidden_dim": config.hidden_size, "n_layers": config.num_hidden_layers, "vocab_size": config.vocab_size}
    fields |= {"n_heads": config.num_attention_heads, "seq_len": config.max_position_embeddings, "weight_tying": True}
    fields |= {"post_embed_norm": False, "qk_norm": False, "model_norm": "rms_norm", "ffn_type": "swiglu"}
    fields |= {"positional_embedding_type": "rotary"}
    (folder / "smollm2.json").write_text(json.dumps(fields))
    torch.save({"epoch": 1, "name": "smollm2", "state_dict": _tensors(model)}, folder / "epoch_1.pt")
    return folder / "epoch_1.pt"


def _tensors(model: Any) -> dict[str, Tensor]:
    inner = model.model
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    tensors = {
        "tok_embeddings.weight": inner.embed_tokens.weight,
        "output.weight": inner.embed_tokens.weight,
        "norm.weight": inner.norm.weight,
    }
    for index, layer in enumerate(inner.layers):
        attention, feed_forward = layer.self_attn, layer.mlp
        keys, values = (
            _repeated(part.weight, groups, attention.head_dim) for part in (attention.k_proj, attention.v_proj)
        )
        parts = {
            "attention.in_proj.weight": torch.cat((attention.q_proj.weight, keys, values)),
            "attention.out_proj.weight": attention.o_proj.weight,
            "attention.pos_embed.inv_freq": inner.rotary_emb.inv_freq.clone(),
            "feed_forward.w12.weight": torch.cat((feed_forward.gate_proj.weight, feed_forward.up_proj.weight)),
            "feed_forward.w3.weight": feed_forward.down_proj.weight,
            "attention_norm.weight": layer.input_layernorm.weight,
            "ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
        tensors |= {f"layers.{index}.{name}": tensor for name, tensor in parts.items()}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _repeated(weight: Tensor, groups: int, head_dim: int) -> Tensor:
    """Every head of keys or values as often as there are heads of queries that share it: open_lm has no groups."""
    heads = weight.view(-1, head_dim, weight.shape[1])
    return heads.repeat_interleave(groups, dim=0).flatten(0, 1)
