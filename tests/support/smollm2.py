"""SmolLM2-135M, a real language model, as an open_lm checkpoint; and texts to ask it about. The library is imported
where it is used: it takes seconds, in each process that collects tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
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
        shared = (attention.k_proj, attention.v_proj)
        keys, values = (_repeated(part.weight, groups, attention.head_dim) for part in shared)
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


LAYERS, HEADS, SHARED, WIDTH, HIDDEN = 2, 4, 2, 64, 96
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe")


def weights() -> dict[str, Tensor]:
    """Weights by Hugging Face's names; only the matrices of a layer are quantised in the file."""
    random = torch.Generator().manual_seed(0)
    shared = WIDTH * SHARED // HEADS
    shapes = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (WIDTH,))
    rows = {"self_attn.q": WIDTH, "self_attn.k": shared, "self_attn.v": shared, "self_attn.o": WIDTH}
    rows |= {"mlp.gate": HIDDEN, "mlp.up": HIDDEN, "mlp.down": WIDTH}
    shapes |= {f"{name}_proj": (count, HIDDEN if name == "mlp.down" else WIDTH) for name, count in rows.items()}
    named = {"model.embed_tokens": (len(TOKENS), WIDTH), "model.norm": (WIDTH,)}
    named |= {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    return {f"{name}.weight": torch.randn(shape, generator=random) / 8 for name, shape in named.items()}


def quantised(name: str, weight: Tensor) -> tuple[Any, Tensor]:
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
    heads = {"q_proj": HEADS, "k_proj": SHARED}.get(name.split(".")[-2])
    if heads is not None:
        weight = torch.cat([torch.stack(head.chunk(2), dim=1).flatten(0, 1) for head in weight.chunk(heads)])
    return weight.numpy()


def _gguf_name(name: str) -> str:
    parts = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm"}
    parts |= {"o_proj": "attn_output", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"{part}_proj": f"attn_{part}" for part in "qkv"}
    parts |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    words = name.split(".")
    block = f"blk.{words[2]}." if "layers" in words else ""
    return f"{block}{parts[words[-2]]}.weight"
