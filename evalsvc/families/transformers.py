"""Any model of the package transformers, for configurations that no other family reads and a `submitter` may write.

The package computes the model; see `evalsvc.models.transformers_loading`. The configuration is checked here without the
package: nothing in the file may name code, other files or ways of computing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from evalsvc.errors import InvalidModelConfig, UnsupportedModel, show_name
from evalsvc.families.family import Family, Source, validated
from evalsvc.spec.model_config import TRANSFORMERS, ModelConfig

SIZES = {
    "hidden_dim": ("hidden_size", "n_embd", "d_model"),
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "n_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim",),
    "seq_len": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
    "ffn_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim"),
    "vocab_size": ("vocab_size",),
    "weight_tying": ("tie_word_embeddings",),
}
"""Names of each size in the configurations of transformers. They are used to predict memory, and for the layout."""

ABSENT: dict[str, object] = {
    "seq_len": 2048,
    "n_heads": 1,
    "weight_tying": False,
    "post_embed_norm": False,
    "positional_embedding_type": "none",
}
"""Sizes for configurations that give none; the length is open_lm's default."""

MAX_CHARACTERS = 1_000_000
"""Maximum length of `transformers_config`, which the service stores with every checkpoint."""

# fmt: off
DROPPED = frozenset((
    "architectures", "attn_implementation", "dtype", "experts_implementation", "fusion_config",
    "gradient_checkpointing", "id2label", "kernel_config", "label2id", "name_or_path", "num_labels",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version",
    "transformers_weights", "use_cache", "use_kernels",
))
# fmt: on
"""Fields without influence on the logits: how or where a model is run, and the labels of a classifier, of which the
package makes a list as long as `num_labels`. Fields that begin with `_` are dropped too."""


class TransformersFamily(Family):
    runs = "transformers"

    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        """Return the sizes of the model, with the checked configuration as `transformers_config`."""
        _require_plain(fields, source)
        settings = {name: value for name, value in fields.items() if name not in DROPPED and not name.startswith("_")}
        given = {field: [name for name in names if settings.get(name) is not None] for field, names in SIZES.items()}
        names = {field: known[0] for field, known in given.items() if known}
        sizes = {**ABSENT, **{field: _largest(settings[name]) for field, name in names.items()}}
        for field in ("hidden_dim", "n_layers", "vocab_size"):
            if field not in sizes:
                raise InvalidModelConfig(f"{source} sets none of {', '.join(SIZES[field])}; add the size of the model")
        config = validated(ModelConfig, sizes, source, shown, "a configuration of a causal language model", names)
        try:
            text = json.dumps(settings, sort_keys=True)
        except RecursionError:
            raise InvalidModelConfig(f"{source} is nested too deep; correct the file") from None
        if len(text) > MAX_CHARACTERS:
            raise InvalidModelConfig(
                f"{source} has {len(text):,} characters of fields, and at most {MAX_CHARACTERS:,} are kept for the "
                "package transformers; remove what the model does not need, such as a list of tokens"
            )
        return config.model_copy(update={"family": TRANSFORMERS, "transformers_config": text})

    def reread(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        """Return the configuration of a model whose fields were read before, checked again: anyone may post fields."""
        try:
            settings = json.loads(str(fields.get("transformers_config")))
        except (ValueError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise InvalidModelConfig(
                f"{source} has no transformers_config that is a JSON object; give `model: transformers`, or the "
                "config.json of the model"
            )
        return self.read(settings, source, shown)

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        raise UnsupportedModel(
            "the package transformers computes this model: it cannot be combined with others or loaded by load_model; "
            "give a checkpoint of a family, or load it by evalsvc.models.transformers_loading.load_transformers"
        )


TRANSFORMERS_FAMILY = TransformersFamily()


def _require_plain(fields: Mapping[str, object], source: str) -> None:
    if "auto_map" in fields:
        raise UnsupportedModel(
            f"{source} names code of its own (auto_map), and a checkpoint's code is never run; save the model with a "
            "class of transformers, or install a package with a family for it"
        )
    for name in ("quantization_config", "compression_config"):
        if fields.get(name) is not None:
            raise UnsupportedModel(f"{source} has quantised weights ({name}); save the model without quantisation")
    if fields.get("is_encoder_decoder") is True:
        raise UnsupportedModel(f"{source} is an encoder with a decoder; evaluate a decoder-only language model")
    parts = [name for name, value in fields.items() if isinstance(value, Mapping) and value.get("model_type")]
    if parts:
        raise UnsupportedModel(
            f"{source} describes a model of several parts ({show_name(parts[0])}); save the language model alone"
        )
    if not isinstance(fields.get("model_type"), str):
        raise InvalidModelConfig(f"{source} gives no model_type; add the name of the model in transformers")


def _largest(value: object) -> object:
    numbers = [item for item in value if isinstance(item, int)] if isinstance(value, list) else []
    return max(numbers) if numbers else value
