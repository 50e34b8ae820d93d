"""Names of tensors, and orders, of torchtitan and OLMo-core.

Their own models gave the same logits when this was written: OLMo-core 3.0.0 to the last bit, torchtitan 0.3.0 to 2e-6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_folders import save_distributed
from refusals import refusal
from safetensors.torch import load_file
from tiny_families import write_ours
from torch import Tensor

from evalsvc.errors import CheckpointMismatch, InvalidModelConfig
from evalsvc.models import load_model

IDS = torch.arange(20)[None]

TITAN = {"embed_tokens": "tok_embeddings", "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo"}
TITAN |= {"self_attn": "attention", "mlp": "feed_forward", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
TITAN |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
OLMO = TITAN | {"embed_tokens": "embeddings", "q_proj": "w_q", "k_proj": "w_k", "v_proj": "w_v", "o_proj": "w_out"}
OLMO |= {"layers": "blocks", "ffn_norm": "feed_forward_norm", "post_attention_layernorm": "feed_forward_norm"}
AFTER = {"post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "feed_forward_norm"}


def named(folder: Path, words: dict[str, str], **whole: str) -> dict[str, Tensor]:
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    names = {name: ".".join(words.get(word, word) for word in name.split(".")) for name in tensors}
    return {whole.get(name.split(".")[0], "") or names[name]: tensor for name, tensor in tensors.items()}


def same(ours: Any, folder: Path) -> None:
    assert torch.equal(ours(IDS), load_model(folder)(IDS))


@pytest.mark.parametrize("name", ["llama", "llama-3", "llama-biases", "qwen3"])
@pytest.mark.parametrize("is_older", [False, True])
def test_torchtitans_names_and_order(name: str, is_older: bool, tmp_path: Path) -> None:
    """Of 2026 and before. Only Qwen3 has transformers' order of a head's dimensions."""
    model = write_ours(name, tmp_path / "theirs")
    state = named(tmp_path / "theirs", TITAN)
    for key in list(state):
        if name != "qwen3" and (".wq." in key or ".wk." in key):
            state[key] = state[key].unflatten(0, (-1, 2, model.config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        if not is_older:
            for part in ("wq", "wk", "wv"):
                if f".{part}." in key:
                    state[key.replace(part, f"qkv_linear.{part}")] = state.pop(key)
        elif key == "lm_head.weight":
            state["output.weight"] = state.pop(key)
    if is_older:
        state["freqs_cis"] = torch.zeros(4, 4, dtype=torch.complex64)
    moments = {f"state.{key}.exp_avg": value for key, value in state.items()}
    save_distributed(tmp_path / "step-1000", {**state, "optimizer": moments, "train_state": {"step": torch.tensor(9)}})
    same(load_model(tmp_path / "step-1000", str(tmp_path / "theirs" / "config.json")), tmp_path / "theirs")
    message = refusal(InvalidModelConfig, load_model, tmp_path / "step-1000")
    assert "for torchtitan and OLMo-core, a config.json of Hugging Face with the model's sizes" in message


@pytest.mark.parametrize("name", ["llama", "olmo2", "qwen3"])
def test_a_step_of_olmo_core(name: str, tmp_path: Path) -> None:
    """Beside a configuration of OLMo-core, which is not read."""
    write_ours(name, tmp_path / "theirs")
    state = named(tmp_path / "theirs", OLMO | (AFTER if name == "olmo2" else {}))
    state["lm_head.norm.weight"] = state.pop("norm.weight")
    state["lm_head.w_out.weight"] = state.pop("lm_head.weight")
    step, config = tmp_path / "step1000", str(tmp_path / "theirs" / "config.json")
    save_distributed(step / "model_and_optim", {"model": state, "optim": {"state": {"w": state}}})
    (step / "config.json").write_text(json.dumps({"model": {"d_model": 48, "n_layers": 2, "block": {}}}))
    for path in (step, step / "model_and_optim"):
        same(load_model(path, config), tmp_path / "theirs")
    assert "for torchtitan and OLMo-core, a config.json" in refusal(InvalidModelConfig, load_model, step)
    state.pop("blocks.1.attention.w_q.weight")
    save_distributed(tmp_path / "less", {"model": state})
    message = refusal(CheckpointMismatch, load_model, tmp_path / "less", config)
    assert "1 missing: blocks.1.attention.w_q.weight" in message
    assert "hidden_dim 48, n_layers 2, vocab_size 96" in message
