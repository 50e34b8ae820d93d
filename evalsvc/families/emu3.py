"""Emu3: a Llama with other defaults, whose files have three names of the model and of the tensors.

The authors' folders have `model_type: Emu3` and name code of their own, which is Llama's arithmetic and is not used.
transformers saves the language model alone (`emu3_text_model`), or with the image tokenizer (`emu3`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from evalsvc.errors import InvalidModelConfig
from evalsvc.families.family import Source
from evalsvc.families.hugging_face import LlamaNamed, renamed
from evalsvc.families.llama import LlamaFields
from evalsvc.spec.model_config import MAX_LAYERS, ModelConfig


class Emu3Fields(LlamaFields):
    """Fields of Emu3TextConfig, with transformers' defaults, which its files may leave out."""

    rope_theta: float = 1_000_000.0
    vocab_size: int = Field(default=184_622, gt=0, le=2**26)
    hidden_size: int = Field(default=4096, gt=0, le=2**20)
    intermediate_size: int = Field(default=14_336, gt=0, le=2**24)
    num_hidden_layers: int = Field(default=32, gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=32, gt=0, le=2**16)
    num_key_value_heads: int | None = Field(default=8, gt=0, le=2**16)
    max_position_embeddings: int = Field(default=9216, gt=0, le=2**26)
    rms_norm_eps: float = 1e-5

    def refuse_unknown_parts(self) -> None:
        super(Emu3Fields, self.model_copy(update={"auto_map": None})).refuse_unknown_parts()


class Emu3(LlamaNamed):
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        if fields.get("model_type") == "emu3":
            text = fields.get("text_config", {})
            if not isinstance(text, Mapping):
                raise InvalidModelConfig(f"{source} has a text_config that is no object; give that of the model")
            fields = {**text, "quantization_config": fields.get("quantization_config")}
            source, shown = f"{source} (text_config)", {}
        return super().read(fields, source, shown)

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        sources = self.sources(config)
        if "text_model.lm_head.weight" in shapes:  # a saved folder
            return renamed(sources, lambda name: f"text_model.{'' if name == self.head else 'model.'}{name}")
        if "text_model.embed_tokens.weight" in shapes:  # a saved state dict
            return renamed(sources, lambda name: name if name == self.head else f"text_model.{name}")
        return sources

    def ignores(self, name: str) -> bool:
        return name.startswith("vqmodel.") or super().ignores(name)


EMU3 = Emu3("emu3", Emu3Fields)
