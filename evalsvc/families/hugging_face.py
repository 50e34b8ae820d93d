"""Models in Hugging Face's layout: the fields that several families share in `config.json`, and names of tensors.

A family gives its fields, a subclass of `HuggingFaceFields` that turns them into switches, and its names of tensors.
Fields that are not set have the defaults of transformers, except for the shape, which must be set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field

from evalsvc.errors import InvalidModelConfig, UnsupportedModel, show_name
from evalsvc.families.family import OTHERWISE, Family, Source, validated
from evalsvc.families.rotary_fields import RotaryFields
from evalsvc.spec.model_config import MAX_LAYERS, Activation, ModelConfig

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations by transformers' names."""

REMOTE = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


class HuggingFaceFields(RotaryFields):
    """Fields of a `config.json`; other keys are ignored.

    The bounds of the shape are those of `ModelConfig`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    vocab_size: int = Field(gt=0, le=2**26)
    hidden_size: int = Field(gt=0, le=2**20)
    intermediate_size: int = Field(gt=0, le=2**24)
    num_hidden_layers: int = Field(gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(gt=0, le=2**16)
    num_key_value_heads: int | None = Field(default=None, gt=0, le=2**16)
    head_dim: int | None = Field(default=None, gt=0, le=2**16)
    max_position_embeddings: int = Field(gt=0, le=2**26)
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    layer_types: list[str] | None = None
    quantization_config: object = None
    auto_map: object = None

    def switches(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig` that this configuration sets, without the family's name."""
        window = self.window()
        return {
            "hidden_dim": self.hidden_size,
            "n_layers": self.num_hidden_layers,
            "n_heads": self.num_attention_heads,
            "seq_len": min(self.max_position_embeddings, window or self.max_position_embeddings),
            "vocab_size": self.vocab_size,
            "post_embed_norm": False,
            "weight_tying": self.tie_word_embeddings,
            "model_norm": "rms_norm",
            "norm_eps": self.rms_norm_eps,
            "n_kv_heads": _unless(self.num_key_value_heads, self.num_attention_heads),
            "head_size": _unless(self.head_dim, self.hidden_size // self.num_attention_heads),
            "attention_window": window,
            "ffn_type": "gated",
            "ffn_size": self.intermediate_size,
            "ffn_activation": self.activation(),
            **self.rotary_switches(self.max_position_embeddings),
        }

    def window(self) -> int | None:
        """Return the number of tokens that sliding attention is limited to; None if no layer slides."""
        return None

    def activation(self) -> Activation:
        """Return the activation by this project's name. Raises UnsupportedModel."""
        if self.hidden_act not in ACTIVATIONS:
            raise UnsupportedModel(
                f"hidden_act is {show_name(self.hidden_act)}; evalsvc computes {', '.join(ACTIVATIONS)}; {OTHERWISE}"
            )
        return ACTIVATIONS[self.hidden_act]

    def refuse_unknown_parts(self) -> None:
        """Raise UnsupportedModel for quantised weights, code of the checkpoint's own, and other kinds of layers."""
        if self.quantization_config is not None:
            raise UnsupportedModel("the weights are quantised (quantization_config); save them in bfloat16 or float32")
        if isinstance(self.auto_map, Mapping) and any(name in self.auto_map for name in REMOTE):
            raise UnsupportedModel(
                "the model has code of its own (auto_map), which evalsvc never runs; if its architecture is plain, "
                "remove auto_map"
            )
        others = sorted({*(self.layer_types or ())} - {"full_attention", "sliding_attention"})
        if others:
            raise UnsupportedModel(
                f"layer_types has {show_name(others[0])}; evalsvc computes full attention, and sliding_attention "
                f"within its window; {OTHERWISE}"
            )


def _unless(value: int | None, usual: int) -> int | None:
    return None if value == usual else value


class SlidingFields(HuggingFaceFields):
    """Fields of Qwen's families, in which the upper layers may have sliding attention."""

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


@dataclass(frozen=True)
class LayerNames:
    """Names of the norms of a layer in a file."""

    attention_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"


class LlamaNamed(Family):
    """A family whose tensors have the names that Llama's have, with separate products for queries, keys and values."""

    embedding = "embed_tokens.weight"
    head = "lm_head.weight"

    def __init__(self, name: str, fields: type[HuggingFaceFields], norms: LayerNames | None = None) -> None:
        """Describe the family that the catalog lists as `name`."""
        self.name = name
        self.fields = fields
        self.norms = norms or LayerNames()

    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        return read_fields(self.name, self.fields, fields, source, shown)

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        tied = (self.head,) if config.weight_tying else ()
        sources = {
            "tok_embeddings.weight": Source((self.embedding,), aliases=tied),
            "norm.weight": Source(("norm.weight",)),
            "output.weight": Source((self.head,)),
        }
        for layer in range(config.n_layers):
            sources |= {f"layers.{layer}.{name}": source for name, source in self._layer(config, f"layers.{layer}")}
        return sources

    def ignores(self, name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq")

    def _layer(self, config: ModelConfig, prefix: str) -> Iterator[tuple[str, Source]]:
        attention, ffn = f"{prefix}.self_attn", f"{prefix}.mlp"
        for kind in ("weight", *(("bias",) if config.attention_bias else ())):
            names = tuple(f"{attention}.{part}_proj.{kind}" for part in "qkv")
            yield f"attention.in_proj.{kind}", Source(names, (config.attention_dim, config.kv_dim, config.kv_dim))
        for kind in ("weight", *(("bias",) if config.output_bias else ())):
            yield f"attention.out_proj.{kind}", Source((f"{attention}.o_proj.{kind}",))
        for part in "qk" if config.qk_norm else "":
            yield f"attention.{part}_norm.weight", Source((f"{attention}.{part}_norm.weight",))
        for kind in ("weight", *(("bias",) if config.ffn_bias else ())):
            names = (f"{ffn}.gate_proj.{kind}", f"{ffn}.up_proj.{kind}")
            yield f"feed_forward.w12.{kind}", Source(names, (config.ffn_dim, config.ffn_dim))
            yield f"feed_forward.w3.{kind}", Source((f"{ffn}.down_proj.{kind}",))
        yield "attention_norm.weight", Source((f"{prefix}.{self.norms.attention_norm}.weight",))
        yield "ffn_norm.weight", Source((f"{prefix}.{self.norms.ffn_norm}.weight",))


def read_fields(
    name: str,
    kind: type[HuggingFaceFields],
    fields: Mapping[str, object],
    source: str,
    shown: Mapping[str, object],
) -> ModelConfig:
    """Return the configuration that the `fields` of a `config.json` describe. Raises as `Family.read`."""
    parsed = validated(kind, fields, source, shown, f"a {name} configuration")
    try:
        parsed.refuse_unknown_parts()
        switches = {"family": name, **parsed.switches()}
    except (InvalidModelConfig, UnsupportedModel) as error:
        raise type(error)(f"{source}: {error.message}") from None
    given = {key: value for key, value in switches.items() if value is not None}
    return validated(ModelConfig, given, source, {}, f"a {name} configuration that evalsvc can compute")
