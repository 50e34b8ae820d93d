"""Models in Meta's layout, from those of transformers, and Meta's arithmetic of a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

PARTS = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv"}
PARTS |= {"self_attn.o_proj": "attention.wo", "self_attn.q_norm": "attention.q_normalization"}
PARTS |= {"self_attn.k_norm": "attention.k_normalization", "mlp.gate_proj": "feed_forward.w1"}
PARTS |= {"mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2", "embed_tokens": "tok_embeddings"}
PARTS |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "lm_head": "output"}
COLUMNS = ("tok_embeddings", "attention.wo", "feed_forward.w2")
DIM = 8
"""Width of a head."""
Tensors = dict[str, Tensor]


def neighbours(name: str, tensor: Tensor) -> Tensor:
    """The order of Meta's rotation, for a product of queries or keys, or the norms of all heads."""
    if ".q_proj." in name or ".k_proj." in name:
        return tensor.unflatten(0, (-1, 2, DIM // 2)).transpose(1, 2).flatten(0, 2)
    return tensor.unflatten(1, (2, DIM // 2)).transpose(1, 2).flatten(1) if "_norm." in name else tensor


def meta_name(name: str) -> str:
    for theirs, own in PARTS.items():
        name = name.replace(theirs, own)
    return name


def by_shard(tensors: Mapping[str, Tensor], count: int, columns: tuple[str, ...] = COLUMNS) -> list[Tensors]:
    """Meta's files, of a model whose norms are equal within each shard."""
    shards: list[Tensors] = [{"rope.freqs": torch.zeros(DIM // 2)} for _ in range(count)]
    for name, tensor in tensors.items():
        own, turned = meta_name(name), neighbours(name, tensor)
        dim = 1 if any(part in own for part in columns) else 0
        whole = own.endswith("norm.weight")
        parts = [turned] * count if whole else list(turned.chunk(count, dim))
        for shard, part in zip(shards, parts, strict=True):
            shard[own] = (part[0] if "normalization" in own else part).clone()
    return shards


def llama_logits(tensors: Tensors, params: Mapping[str, Any], ids: Tensor) -> Tensor:  # [T] → [T, V]
    """Return the logits of a Llama in one file of Meta's, whose frequencies turn pairs of neighbours, in float64."""
    by_name = {name: tensor.double() for name, tensor in tensors.items()}
    heads, keys, count = params["n_heads"], params["n_kv_heads"], len(ids)

    def norm(name: str, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + params["norm_eps"]) * by_name[name]

    places = torch.arange(count, dtype=torch.float64)[:, None]
    turns = torch.polar(torch.ones(1, dtype=torch.float64), places * frequencies(params))[:, None]  # [T, 1, DIM / 2]

    def turned(rows: Tensor, number: int) -> Tensor:  # [T, number·DIM] → [number, T, DIM]
        pairs = torch.view_as_complex(rows.view(count, number, DIM // 2, 2)) * turns
        return torch.view_as_real(pairs).flatten(2).transpose(0, 1)

    hidden = by_name["tok_embeddings.weight"][ids]
    hides = torch.full((count, count), float("-inf"), dtype=torch.float64).triu(1)
    for layer in range(params["n_layers"]):
        weights = {name: by_name[f"layers.{layer}.{name}.weight"] for name in LAYER}
        normed = norm(f"layers.{layer}.attention_norm.weight", hidden)
        queries = turned(normed @ weights["attention.wq"].T, heads)
        key = turned(normed @ weights["attention.wk"].T, keys).repeat_interleave(heads // keys, 0)
        value = (normed @ weights["attention.wv"].T).view(count, keys, DIM).transpose(0, 1)
        shares = (queries @ key.transpose(1, 2) / DIM**0.5 + hides).softmax(-1)
        read = (shares @ value.repeat_interleave(heads // keys, 0)).transpose(0, 1).flatten(1)
        hidden = hidden + read @ weights["attention.wo"].T
        normed = norm(f"layers.{layer}.ffn_norm.weight", hidden)
        gated = silu(normed @ weights["feed_forward.w1"].T) * (normed @ weights["feed_forward.w3"].T)
        hidden = hidden + gated @ weights["feed_forward.w2"].T
    return norm("norm.weight", hidden) @ by_name["output.weight"].T


LAYER = (*(f"attention.w{part}" for part in "qkvo"), *(f"feed_forward.w{part}" for part in "123"))


def frequencies(params: Mapping[str, Any]) -> Tensor:  # [DIM / 2]
    """Return the angles by position. Scaled, waves longer than 8,192 positions are eight times as long, and those
    between 2,048 and 8,192 are in between."""
    table = params["rope_theta"] ** -(torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    if not params.get("use_scaled_rope"):
        return table
    share = ((8192 * table / (2 * torch.pi) - 1) / 3).clamp(0, 1)
    return (1 - share) * table / 8 + share * table
