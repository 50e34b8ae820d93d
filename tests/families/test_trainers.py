"""Names of tensors, orders and configurations of torchtitan and OLMo-core.

Their own models gave the same logits when this was written: OLMo-core 3.0.0 to the last bit, torchtitan 0.3.0 to 2e-6.
"""

from __future__ import annotations

import copy
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

from evalsvc.errors import CheckpointMismatch, EvalsvcError, InvalidModelConfig, UnsupportedModel
from evalsvc.families.reading import find_model_config, read_model_spec
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
    assert "for torchtitan, a config.json of Hugging Face with the model's sizes" in message


NORM = {"name": "rms", "eps": 1e-6, "bias": False, "dtype": "float32", "_CLASS_": "olmo_core.nn.layer_norm.LayerNorm"}
ROPE = {"name": "default", "theta": 10_000, "full_precision": True, "no_global_rope": False}
MIXER = {"name": "default", "n_heads": 6, "n_kv_heads": 2, "bias": False, "rope": ROPE, "dtype": "float32"}
MIXER |= {"use_head_qk_norm": False, "scalable_softmax": False, "attention_sinks": False, "type": "attention"}
FFN = {"hidden_size": 80, "name": "default", "bias": False, "dtype": "float32", "activation": "silu"}
BLOCK = {"sequence_mixer": MIXER, "layer_norm": NORM, "feed_forward": FFN, "name": "default"}
HEAD = {"name": "default", "layer_norm": NORM, "bias": False, "loss_implementation": "default"}
MODEL = {"d_model": 48, "vocab_size": 96, "n_layers": 2, "block": BLOCK, "lm_head": HEAD, "name": "default"}
MODEL |= {"init_method": "normal", "init_seed": 0, "tie_word_embeddings": False, "dtype": "float32"}
RUN: dict[str, Any] = {"run_name": "x", "model": MODEL, "train_module": {"max_sequence_length": 128}}


def changed(place: str, value: object, run: dict[str, Any] = RUN) -> dict[str, Any]:
    run = copy.deepcopy(run)
    *path, last = place.split(".")
    inner = run
    for name in path:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return run


@pytest.mark.parametrize("name", ["llama", "olmo2", "qwen3"])
@pytest.mark.parametrize("mixer", ["sequence_mixer", "attention"])
def test_a_step_of_olmo_core(name: str, mixer: str, tmp_path: Path) -> None:
    """With its configuration above the folder of the tensors, by the names of 2026 and of OLMo 2."""
    base = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "rms_norm_eps": 1e-6}
    write_ours(name, tmp_path / "theirs", **base)
    state = named(tmp_path / "theirs", OLMO | (AFTER if name == "olmo2" else {}))
    state["lm_head.norm.weight"] = state.pop("norm.weight")
    state["lm_head.w_out.weight"] = state.pop("lm_head.weight")
    run = changed("model.block.sequence_mixer.qk_norm", NORM if name != "llama" else None)
    if name == "olmo2":
        run = changed("model.block.name", "reordered_norm", run)
    if name == "qwen3":
        run = changed("model.block.sequence_mixer.use_head_qk_norm", True, run)
        run = changed("model.block.sequence_mixer.head_dim", 16, run)
    run["model"]["block"][mixer] = run["model"]["block"].pop("sequence_mixer")
    step = tmp_path / "step1000"
    save_distributed(step / "model_and_optim", {"model": state, "optim": {"state": {"w": state}}})
    (step / "config.json").write_text(json.dumps(run))
    for path in (step, step / "model_and_optim"):
        ours = load_model(path)
        assert ours.config.family == name
        assert float((ours(IDS) - load_model(tmp_path / "theirs")(IDS)).abs().max()) < 1e-5
    same(load_model(step, str(tmp_path / "theirs" / "config.json")), tmp_path / "theirs")
    state.pop("blocks.1.attention.w_q.weight")
    save_distributed(tmp_path / "less", {"model": state})
    message = refusal(CheckpointMismatch, load_model, tmp_path / "less", str(step / "config.json"))
    assert "1 missing: blocks.1.attention.w_q.weight" in message
    assert "hidden_dim 48, n_layers 2, vocab_size 96" in message


def test_a_window_and_the_length() -> None:
    sliding = changed("model.block.sequence_mixer.sliding_window", {"pattern": [64, 64, -1]})
    found = read_model_spec(sliding)
    assert (found["seq_len"], found["attention_window"]) == (64, 64)
    without = changed("train_module", {})
    assert "has no train_module.max_sequence_length; add" in refusal(InvalidModelConfig, read_model_spec, without)
    assert read_model_spec(changed("dataset.sequence_length", 77, without))["seq_len"] == 77


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("block.name", "peri_norm"),
        ("block.name", "moe"),
        ("block.feed_forward_moe.num_experts", 8),
        ("block.sequence_mixer.name", "fused"),
        ("block.sequence_mixer.gate.granularity", "headwise"),
        ("block.sequence_mixer.clip_qkv", 8.0),
        ("block.sequence_mixer.scalable_softmax", True),
        ("block.sequence_mixer.rope.name", "complex"),
        ("block.sequence_mixer.rope.scaling", {"factor": 8.0}),
        ("block.sequence_mixer.rope.partial_rotary_factor", 0.5),
        ("block.sequence_mixer.qk_norm", {**NORM, "eps": 1e-5}),
        ("block.layer_norm.name", "l2_norm"),
        ("block.layer_norm.bias", True),
        ("block.attention_residual_alpha", 0.5),
        ("lm_head.bias", None),
        ("lm_head.layer_norm", None),
        ("embed_scale", 2.0),
        ("embedding_norm", NORM),
        ("block_overrides", {"1": BLOCK}),
        ("block", {"local": BLOCK, "global": BLOCK}),
        ("name", "normalized"),
        ("a_part_of_the_future", 1),
    ],
)
def test_a_part_of_olmo_core_that_is_not_computed(place: str, value: object) -> None:
    """It is named by its place, and never passed over."""
    message = refusal(UnsupportedModel, read_model_spec, changed(f"model.{place}", value))
    assert "has a value that evalsvc does not compute; save the model by OLMo-core's convert_checkpoint_to" in message


@pytest.mark.parametrize(
    ("place", "value"),
    [("d_model", "48"), ("n_layers", -1), ("n_layers", 10**9), ("d_model", 10**12), ("block.feed_forward", {}),
     ("block.sequence_mixer.rope.theta", "x"), ("block.sequence_mixer.sliding_window", {"pattern": [0]}),
     ("block.sequence_mixer.n_heads", 7), ("block.feed_forward.activation", "tanh")],
)  # fmt: skip
def test_a_wrong_configuration_of_olmo_core(place: str, value: object) -> None:
    refusal((InvalidModelConfig, UnsupportedModel), read_model_spec, changed(f"model.{place}", value))


def test_hostile_configurations_of_olmo_core(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = {"a": deep}
    for model in ({**MODEL, "block": deep}, {**MODEL, "block": [MODEL] * 1000}, {**MODEL, "lm_head": 5}):
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        refusal(EvalsvcError, find_model_config, tmp_path)
