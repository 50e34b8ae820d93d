"""Families whose files have the layout of Llama's: Llama, Mistral, Qwen2, Qwen3, OLMo 2 and Gemma.

SmolLM2 and Llama 3 have the `model_type` llama, and Qwen2.5 has qwen2. Llama's files may be Meta's, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from evalsvc.errors import UnsupportedModel
from evalsvc.families.family import Source, validated
from evalsvc.families.hugging_face import HuggingFaceFields, LlamaNamed
from evalsvc.families.meta import MetaFields, meta_family, meta_sources
from evalsvc.spec.model_config import Activation, ModelConfig

SCALED_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of `apply_scaling` in Meta's program."""


class LlamaFields(HuggingFaceFields):
    attention_bias: bool = False
    mlp_bias: bool = False

    def switches(self) -> dict[str, Any]:
        """Add the biases; `attention_bias` stands for the biases of all four products of attention."""
        biases = {"attention_bias": self.attention_bias, "output_bias": self.attention_bias, "ffn_bias": self.mlp_bias}
        return super().switches() | biases


class MistralFields(HuggingFaceFields):
    """Fields of MistralConfig, which has sliding attention in every layer."""

    num_key_value_heads: int | None = Field(default=8, gt=0, le=2**16)
    sliding_window: int | None = Field(default=4096, gt=0, le=2**26)

    def window(self) -> int | None:
        return self.sliding_window


class QwenFields(HuggingFaceFields):
    """Fields of both Qwen families, in which the upper layers may have sliding attention."""

    num_key_value_heads: int | None = Field(default=32, gt=0, le=2**16)
    use_sliding_window: bool = False
    sliding_window: int | None = Field(default=4096, gt=0, le=2**26)
    max_window_layers: int = 28

    def window(self) -> int | None:
        """Return the window if a layer has sliding attention, by `layer_types` where set, as in transformers."""
        if not self.use_sliding_window or self.sliding_window is None:
            return None
        by_number = self.max_window_layers < self.num_hidden_layers
        slides = by_number if self.layer_types is None else "sliding_attention" in self.layer_types
        return self.sliding_window if slides else None


class Qwen2Fields(QwenFields):
    """Fields of Qwen2Config. Every Qwen2 has biases of queries, keys and values."""

    def switches(self) -> dict[str, Any]:
        return super().switches() | {"attention_bias": True}


class Qwen3Fields(QwenFields):
    """Fields of Qwen3Config, which has norms of queries and keys by head."""

    head_dim: int | None = Field(default=128, gt=0, le=2**16)
    attention_bias: bool = False

    def switches(self) -> dict[str, Any]:
        biases = {"attention_bias": self.attention_bias, "output_bias": self.attention_bias}
        return super().switches() | biases | {"qk_norm": True, "qk_norm_per_head": True}


class Olmo2Fields(HuggingFaceFields):
    """Fields of Olmo2Config, which has norms after each part of a layer, and of queries and keys over all heads."""

    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    def switches(self) -> dict[str, Any]:
        norms = {"model_norm": "rms_norm_wide", "norm_place": "after", "qk_norm": True}
        return super().switches() | norms | {"attention_bias": self.attention_bias, "output_bias": self.attention_bias}


class GemmaFields(HuggingFaceFields):
    """Fields of GemmaConfig, the first version, with scaled embeddings and norms whose gain is 1 + weight. Gemma 2 and
    3 cap logits or slide attention in every other layer, which the Transformer does not compute."""

    num_key_value_heads: int | None = Field(default=16, gt=0, le=2**16)
    head_dim: int | None = Field(default=256, gt=0, le=2**16)
    tie_word_embeddings: bool = True
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    use_bidirectional_attention: bool | None = None

    def switches(self) -> dict[str, Any]:
        biases = {"attention_bias": self.attention_bias, "output_bias": self.attention_bias}
        norms = {"model_norm": "rms_norm_plus_one", "embedding_scale": self.hidden_size**0.5}
        return super().switches() | norms | biases

    def activation(self) -> Activation:
        """Return the activation. The first files say gelu and mean its approximation by tanh, as transformers knows."""
        return "gelu_tanh" if self.hidden_act == "gelu" else super().activation()

    def refuse_unknown_parts(self) -> None:
        super().refuse_unknown_parts()
        if self.use_bidirectional_attention:
            raise UnsupportedModel(
                "use_bidirectional_attention is set; evalsvc computes causal attention only: evaluate a causal model"
            )


class LlamaParams(MetaFields):
    """Fields of the `params.json` of Llama 1 to 3, which name neither the length nor, before Llama 3, the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    vocab_size: int = -1
    use_scaled_rope: bool = False

    def of_transformers(self) -> dict[str, object]:
        rows = 32_000 if self.vocab_size == -1 else self.vocab_size
        length = 131_072 if self.use_scaled_rope else 8192 if self.rope_theta > 10_000 else 2048
        scaling = {"rope_type": "llama3", **SCALED_ROPE} if self.use_scaled_rope else None
        others = {"vocab_size": rows, "max_position_embeddings": length, "rope_scaling": scaling}
        return super().of_transformers() | others


class Llama(LlamaNamed):
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        if meta_family(fields) == self.name:
            meta = validated(LlamaParams, fields, source, {}, "a params.json of Llama 1 to 3")
            if meta.use_scaled_rope and meta.dim < 4096:
                raise UnsupportedModel(
                    f"{source} is of Llama 3.2, whose frequencies Meta's program scales by 8, and its config.json on "
                    "Hugging Face by 32; give that config.json as the model"
                )
            fields, shown = meta.of_transformers(), {}
        return super().read(fields, source, shown)

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        whole = super().sources_in(config, shapes)
        return whole if "tok_embeddings.weight" in shapes else meta_sources(config, whole, shapes) or whole


class Qwen3(LlamaNamed):
    has_halves = True


GEMMA = LlamaNamed("gemma", GemmaFields)
LLAMA = Llama("llama", LlamaFields)
MISTRAL = LlamaNamed("mistral", MistralFields)
OLMO2 = LlamaNamed("olmo2", Olmo2Fields, "post_attention_layernorm", "post_feedforward_layernorm")
QWEN2 = LlamaNamed("qwen2", Qwen2Fields)
QWEN3 = Qwen3("qwen3", Qwen3Fields)
