"""Llama and Mistral, which have the same names and arithmetic. SmolLM2 and Llama 3 have the `model_type` llama."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from evalsvc.families.hugging_face import HuggingFaceFields, LlamaNamed


class LlamaFields(HuggingFaceFields):
    """Fields of LlamaConfig."""

    attention_bias: bool = False
    mlp_bias: bool = False

    def switches(self) -> dict[str, Any]:
        """Add the biases; `attention_bias` stands for the biases of all four products of attention."""
        return super().switches() | {
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
            "ffn_bias": self.mlp_bias,
        }


class MistralFields(HuggingFaceFields):
    """Fields of MistralConfig, which has sliding attention in every layer."""

    num_key_value_heads: int | None = Field(default=8, gt=0, le=2**16)
    sliding_window: int | None = Field(default=4096, gt=0, le=2**26)

    def window(self) -> int | None:
        """Return the window of all layers."""
        return self.sliding_window


LLAMA = LlamaNamed("llama", LlamaFields)
MISTRAL = LlamaNamed("mistral", MistralFields)
