"""A Llama in a GGUF file, as a Hugging Face folder: configuration, float32 weights, tokenizer and layout.

Weights are float32, because the sum of a quantised weight's step and offset needs more bits than bfloat16 has: only in
float32 are the logits those of the quantised model.

Only files of a known digest come here, so nothing in a file is checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from torch import Tensor

from evalsvc.assets.download import Progress
from evalsvc.assets.gguf_tokenizer import tokenizer_content, tokenizer_settings
from evalsvc.checkpoints.tensors import tensor_digest

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Hugging Face's names of a Llama's parameters, by those of GGUF."""


def write_folder(path: Path, folder: Path, progress: Progress) -> str:
    """Write the model in `path` as the files of a Hugging Face folder; return the digest of its tensors.

    `progress` gets the number of bytes of the weights so far, and their total.
    """
    reader = GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    config = model_config(values, {tensor.name for tensor in reader.tensors})
    tensors = _read_tensors(reader, config, progress)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layout = {"text": {"size": config["vocab_size"], "tokenizer": "tokenizer.json", "bos": "none"}}
    documents = {
        "config.json": config,
        "tokenizer.json": tokenizer_content(values),
        "tokenizer_config.json": tokenizer_settings(values),
        "layout.json": layout,
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tensor_digest(tensors)


def model_config(values: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """Return the content of `config.json` from a file's metadata and the names of its tensors."""
    llama = {name.removeprefix("llama."): value for name, value in values.items() if name.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": _shortest(llama["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(llama["rope.freq_base"]),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def _shortest(value: float) -> float:
    """Return the shortest decimal number of a float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _read_tensors(reader: Any, config: dict[str, Any], progress: Progress) -> dict[str, Tensor]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    total = sum(4 * int(tensor.n_elements) for tensor in reader.tensors)
    tensors: dict[str, Tensor] = {}
    done = 0
    for item in reader.tensors:
        # Shapes in a GGUF file have the fastest dimension first.
        shape = [int(size) for size in reversed(item.shape)]
        weight = torch.from_numpy(np.array(dequantize(item.data, item.tensor_type), np.float32)).reshape(shape)
        name = NAMES.get(item.name)
        if name is None:
            _, layer, part, _ = item.name.split(".")  # blk.0.attn_q.weight
            name = f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
            weight = half_split(weight, heads[part]) if part in heads else weight
        tensors[name] = weight
        done += weight.numel() * weight.element_size()
        progress(done, total)
    return tensors


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of queries or keys in Hugging Face's order.

    A rotary embedding turns pairs of a head's features. In a GGUF file the two features of a pair are neighbours; in
    Hugging Face's Llama they are half a head apart.
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()
