"""open_lm's model in plain torch, for the independent check: nothing of evalsvc is imported.

Source of the arithmetic: open_lm at commit 9bb92ef (mlfoundations/open_lm): `attention_norm` and `ffn_norm` before each
part, LayerNorm with the epsilon 1e-5, rotary positions in halves with the base 10,000, SwiGLU with the gate first.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5
BASE = 10_000.0


class PlainModel:
    """A model of open_lm with LayerNorm, rotary positions and SwiGLU."""

    def __init__(self, checkpoint: Path, config: Path) -> None:
        shape = json.loads(config.read_text())
        self.heads, self.layers = shape["n_heads"], shape["n_layers"]
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        self.state = {name.removeprefix("module."): tensor.float() for name, tensor in state.items()}

    @torch.no_grad()
    def losses(self, ids: list[int]) -> Tensor:  # [T - 1]
        """Return −ln p of each id but the first, in nats."""
        rows = torch.tensor(ids)
        hidden = self.state["tok_embeddings.weight"][rows[:-1]]
        for layer in range(self.layers):
            hidden = hidden + self._attention(layer, self._norm(f"layers.{layer}.attention_norm", hidden))
            hidden = hidden + self._feed_forward(layer, self._norm(f"layers.{layer}.ffn_norm", hidden))
        logits = self._norm("norm", hidden) @ self.state["output.weight"].T
        return functional.cross_entropy(logits.double(), rows[1:], reduction="none")

    def _norm(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return functional.layer_norm(hidden, hidden.shape[-1:], weight, bias, EPSILON)

    def _attention(self, layer: int, hidden: Tensor) -> Tensor:  # [T, D]
        length = len(hidden)
        parts = (hidden @ self.state[f"layers.{layer}.attention.in_proj.weight"].T).chunk(3, dim=-1)
        query, key, value = (part.view(length, self.heads, -1).transpose(0, 1) for part in parts)  # [H, T, D / H]
        query, key = self._rotated(query), self._rotated(key)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
        return mixed.transpose(0, 1).reshape(length, -1) @ self.state[f"layers.{layer}.attention.out_proj.weight"].T

    def _rotated(self, part: Tensor) -> Tensor:  # [H, T, D / H]
        width = part.shape[-1]
        frequencies = BASE ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(part.shape[1])[:, None] * frequencies
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        first, second = part.chunk(2, dim=-1)
        return part * cos + torch.cat((-second, first), dim=-1) * sin

    def _feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        gate, up = (hidden @ self.state[f"layers.{layer}.feed_forward.w12.weight"].T).chunk(2, dim=-1)
        return (functional.silu(gate) * up) @ self.state[f"layers.{layer}.feed_forward.w3.weight"].T
