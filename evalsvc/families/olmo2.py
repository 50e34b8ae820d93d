"""OLMo 2, with norms of the outputs of attention and feed-forward layer, and of queries and keys over all heads."""

from __future__ import annotations

from typing import Any

from evalsvc.families.hugging_face import HuggingFaceFields, LayerNames, LlamaNamed


class Olmo2Fields(HuggingFaceFields):
    """Fields of Olmo2Config."""

    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    def switches(self) -> dict[str, Any]:
        """Add the place of the norms, the norms of queries and keys, and the biases."""
        return super().switches() | {
            "model_norm": "rms_norm_wide",
            "norm_place": "after",
            "qk_norm": True,
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
        }


OLMO2 = LlamaNamed("olmo2", Olmo2Fields, LayerNames("post_attention_layernorm", "post_feedforward_layernorm"))
