"""A random Llama of a few thousand weights in a GGUF file, as llama.cpp's conversion writes SmolLM2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor

LAYERS, HEADS, SHARED, WIDTH, HIDDEN = 2, 4, 2, 64, 96
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe")


def weights() -> dict[str, Tensor]:
    """Weights by Hugging Face's names; only the matrices of a layer are quantised in the file."""
    random = torch.Generator().manual_seed(0)
    shared = WIDTH * SHARED // HEADS
    shapes = {
        "input_layernorm": (WIDTH,),
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (shared, WIDTH),
        "self_attn.v_proj": (shared, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "post_attention_layernorm": (WIDTH,),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
    }
    named = {"model.embed_tokens": (len(TOKENS), WIDTH), "model.norm": (WIDTH,)}
    named |= {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    return {f"{name}.weight": torch.randn(shape, generator=random) / 8 for name, shape in named.items()}


def quantised(name: str, weight: Tensor) -> tuple[Any, Tensor]:
    """The kind of a weight in the file, and the numbers that the file holds for it."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    matrix = GGMLQuantizationType.Q8_0 if "embed" in name else GGMLQuantizationType.Q4_1
    kind = GGMLQuantizationType.F32 if weight.dim() == 1 else matrix
    return kind, torch.from_numpy(np.array(dequantize(quantize(weight.numpy(), kind), kind), np.float32))


def write_tiny_gguf(path: Path) -> None:
    """Write the file: embeddings as Q8_0, matrices of layers as Q4_1, norms as F32."""
    from gguf import GGUFWriter, quantize

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    for name, weight in weights().items():
        kind, _ = quantised(name, weight)
        writer.add_tensor(_gguf_name(name), quantize(_neighbours(name, weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _neighbours(name: str, weight: Tensor) -> np.ndarray[Any, Any]:
    """Return rows of queries and keys with the two features of a rotated pair next to each other."""
    heads = {"q_proj": HEADS, "k_proj": SHARED}.get(name.split(".")[-2])
    if heads is not None:
        weight = torch.cat([torch.stack(head.chunk(2), dim=1).flatten(0, 1) for head in weight.chunk(heads)])
    return weight.numpy()


def _gguf_name(name: str) -> str:
    parts = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "o_proj": "attn_output",
    }
    parts |= {f"{part}_proj": f"attn_{part}" for part in "qkv"} | {"post_attention_layernorm": "ffn_norm"}
    parts |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    words = name.split(".")
    block = f"blk.{words[2]}." if "layers" in words else ""
    return f"{block}{parts[words[-2]]}.weight"
