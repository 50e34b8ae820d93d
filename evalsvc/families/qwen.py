"""Qwen2 (and 2.5), with biases of queries, keys and values, and Qwen3, with norms of queries and keys by head."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from evalsvc.families.hugging_face import LlamaNamed, SlidingFields


class Qwen2Fields(SlidingFields):
    """Fields of Qwen2Config."""

    num_key_value_heads: int | None = Field(default=32, gt=0, le=2**16)

    def switches(self) -> dict[str, Any]:
        """Add the biases, which every Qwen2 has."""
        return super().switches() | {"attention_bias": True}


class Qwen3Fields(SlidingFields):
    """Fields of Qwen3Config."""

    num_key_value_heads: int | None = Field(default=32, gt=0, le=2**16)
    head_dim: int | None = Field(default=128, gt=0, le=2**16)
    attention_bias: bool = False

    def switches(self) -> dict[str, Any]:
        """Add the norms of queries and keys, and the biases."""
        return super().switches() | {
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
            "qk_norm": True,
            "qk_norm_per_head": True,
        }


QWEN2 = LlamaNamed("qwen2", Qwen2Fields)
QWEN3 = LlamaNamed("qwen3", Qwen3Fields)
