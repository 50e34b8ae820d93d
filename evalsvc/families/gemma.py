"""Gemma, the first version, with scaled embeddings and norms whose gain is 1 + weight.

Gemma 2 and 3 cap their logits or slide their attention in every other layer, which the Transformer does not compute.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from evalsvc.errors import UnsupportedModel
from evalsvc.families.hugging_face import HuggingFaceFields, LlamaNamed
from evalsvc.spec.model_config import Activation


class GemmaFields(HuggingFaceFields):
    """Fields of GemmaConfig."""

    num_key_value_heads: int | None = Field(default=16, gt=0, le=2**16)
    head_dim: int | None = Field(default=256, gt=0, le=2**16)
    tie_word_embeddings: bool = True
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    use_bidirectional_attention: bool | None = None

    def switches(self) -> dict[str, Any]:
        """Add the scale of the embeddings, the kind of norm, and the biases."""
        return super().switches() | {
            "model_norm": "rms_norm_plus_one",
            "embedding_scale": self.hidden_size**0.5,
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
        }

    def activation(self) -> Activation:
        """Return the activation. The first files say gelu and mean its approximation by tanh, as transformers knows."""
        return "gelu_tanh" if self.hidden_act == "gelu" else super().activation()

    def refuse_unknown_parts(self) -> None:
        """Refuse attention to later tokens too."""
        super().refuse_unknown_parts()
        if self.use_bidirectional_attention:
            raise UnsupportedModel(
                "use_bidirectional_attention is set; evalsvc computes causal attention only: evaluate a causal model"
            )


GEMMA = LlamaNamed("gemma", GemmaFields)
