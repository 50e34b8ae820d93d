"""open_lm, and the models that it registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalsvc.errors import UnsupportedModel
from evalsvc.families.family import Family, Source, validated
from evalsvc.spec.model_config import OPEN_LM_FIELDS, ModelConfig

_MOE = "{source} is a mixture of experts ({reason}); evalsvc evaluates dense open_lm models only"
_SWITCHES = ModelConfig.model_fields.keys() - OPEN_LM_FIELDS
"""Fields that no configuration of open_lm has; keys of these names mean something else there."""


class OpenLM(Family):
    """Models of open_lm, whose names of tensors are the Transformer's own."""

    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        """Return the configuration of open_lm's fields; other keys are ignored, as in open_lm."""
        if fields.get("ffn_type") == "moe" or fields.get("moe_freq") not in (None, 0):
            reason = "ffn_type moe" if fields.get("ffn_type") == "moe" else "moe_freq is not 0"
            raise UnsupportedModel(_MOE.format(source=source, reason=reason))
        own = {name: value for name, value in fields.items() if name not in _SWITCHES}
        return validated(ModelConfig, own, source, shown, "an open_lm model configuration")

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        """Return the parameters that open_lm saves under two names: a tied table, and the weights of `gelu`."""
        twins: dict[str, str] = {}
        if config.weight_tying:
            twins["tok_embeddings.weight"] = "output.weight"
        for layer in range(config.n_layers) if config.ffn_type == "gelu" else ():
            twins[f"layers.{layer}.feed_forward.0.weight"] = f"layers.{layer}._ff_w1.weight"
            twins[f"layers.{layer}.feed_forward.2.weight"] = f"layers.{layer}._ff_w2.weight"
        return {name: Source((name,), aliases=(other,)) for name, other in twins.items()}


OPEN_LM_FAMILY = OpenLM()


# registered models

# name: (hidden_dim, n_layers, n_heads), followed by (seq_len, vocab_size) where they are not 2,048 and 50,432.
_SHAPES: dict[str, tuple[int, ...]] = {
    "open_lm_test_tiny": (16, 2, 2, 16, 16),
    "open_lm_11m": (96, 12, 12),
    "open_lm_11m_v2": (96, 8, 4),
    "open_lm_25m": (192, 12, 12),
    "open_lm_41m": (288, 12, 12),
    "open_lm_79m_v2": (512, 8, 4),
    "open_lm_87m": (488, 12, 12),
    "open_lm_154m_v2": (576, 24, 8),
    "open_lm_160m": (768, 12, 12),
    "open_lm_410m": (1024, 24, 16),
    "open_lm_411m_v2": (1024, 24, 8),
    "open_lm_830m": (1536, 24, 16),
    "open_lm_1b": (2048, 24, 16),
    "open_lm_1b_old": (2048, 24, 16),
    "m1b_tiktoken": (2048, 24, 16, 2048, 50304),
    "open_lm_3b": (2560, 32, 32),
    "open_lm_7b": (4096, 32, 32),
    "llama2_7b": (4096, 32, 32, 4096, 32000),
}
_FIXED: dict[str, dict[str, object]] = {
    "open_lm_1b_old": {
        "positional_embedding_type": "head_rotary",
        "model_norm": "default_layer_norm",
        "qk_norm": False,
        "ffn_type": "swiglu",
    },
    "llama2_7b": {"positional_embedding_type": "llama_rotary", "model_norm": "rms_norm", "ffn_type": "swiglu"},
}
_ALIASES = {
    "quark_neox": "open_lm_11m",
    "atom_neox": "open_lm_25m",
    "aphid_neox": "open_lm_87m",
    "ant_neox": "open_lm_160m",
    "potato_neox": "open_lm_410m",
    "marmot_neox": "open_lm_830m",
    "m1b_neox": "open_lm_1b",
    "g3b_neox": "open_lm_3b",
    "l7b_neox": "open_lm_7b",
}


def registered_models() -> dict[str, dict[str, Any]]:
    """Return the JSON fields of every model that open_lm registers, aliases included, by name. Mamba models are left
    out."""
    models = {name: _registered(name) for name in _SHAPES}
    return models | {alias: models[name] for alias, name in _ALIASES.items()}


def _registered(name: str) -> dict[str, Any]:
    hidden_dim, n_layers, n_heads, *rest = _SHAPES[name]
    seq_len, vocab_size = rest or (2048, 50432)
    shape = {"hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads, "seq_len": seq_len}
    return shape | {"vocab_size": vocab_size, "post_embed_norm": False, "weight_tying": False} | _FIXED.get(name, {})
