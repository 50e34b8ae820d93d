"""Models in Hugging Face's layout: the fields that several families share in `config.json`, and names of tensors.

A family gives its fields, a subclass of `HuggingFaceFields` that turns them into switches, and its names of tensors.
Fields that are not set have the defaults of transformers, except for the shape, which must be set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.errors import InvalidModelConfig, UnsupportedModel, show_name
from evalsvc.families.family import OTHERWISE, Family, Source, validated
from evalsvc.spec.model_config import MAX_LAYERS, Activation, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

META_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
"""Name that Meta and torchtitan give each table, and each part of a layer but its norms, by transformers' name."""

TITAN_NAMES = {f"self_attn.{part}_proj": f"attention.qkv_linear.w{part}" for part in "qkv"}
"""Names that torchtitan gives since 2026."""

OLMO_CORE_NAMES = META_NAMES | {
    "embed_tokens": "embeddings",
    "norm": "lm_head.norm",
    "lm_head": "lm_head.w_out",
    "self_attn.q_proj": "attention.w_q",
    "self_attn.k_proj": "attention.w_k",
    "self_attn.v_proj": "attention.w_v",
    "self_attn.o_proj": "attention.w_out",
}

BUFFERS = ("rotary_emb.inv_freq", "rope.freqs", "freqs_cis", "rope_cache", "rope.cache")
"""Ends of names of rotary tables, which some versions of the programs saved."""

REMOTE = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")

SCALINGS = ("default", "linear", "llama3")
"""Types of scaling that the Transformer computes."""


class HuggingFaceFields(BaseModel):
    """Fields of a `config.json`; other keys are ignored. The bounds of the shape are those of `ModelConfig`. Older
    files have `rope_theta` and `rope_scaling`; newer files have both in `rope_parameters`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
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
            "n_kv_heads": None if self.num_key_value_heads == self.num_attention_heads else self.num_key_value_heads,
            "head_size": None if self.head_dim == self.hidden_size // self.num_attention_heads else self.head_dim,
            "attention_window": window,
            "ffn_type": "gated",
            "ffn_size": self.intermediate_size,
            "ffn_activation": self.activation(),
            **self.rotary_switches(self.max_position_embeddings),
        }

    def rotary_switches(self, length: int) -> dict[str, Any]:
        """Return the switches of `ModelConfig` for the rotary positions of a model of sequences of `length` tokens."""
        parameters = self.rotary_parameters()
        if number_of(parameters, "partial_rotary_factor", self.partial_rotary_factor) != 1:
            raise UnsupportedModel(
                f"partial_rotary_factor is not 1; evalsvc rotates a part of each head only for gpt_neox; {OTHERWISE}"
            )
        return self.frequency_switches(parameters, length)

    def frequency_switches(self, parameters: Mapping[str, Any], length: int) -> dict[str, Any]:
        base = number_of(parameters, "rope_theta", self.rope_theta)
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in SCALINGS:
            raise UnsupportedModel(
                f"the rotary frequencies have the rope_type {show_name(str(kind))}; evalsvc computes "
                f"{', '.join(SCALINGS)}; {OTHERWISE}"
            )
        if kind == "default":
            return {"rotary_base": base}
        scaling: dict[str, Any] = {"kind": kind, "factor": number_of(parameters, "factor")}
        if kind == "llama3":
            scaling["low_freq_factor"] = number_of(parameters, "low_freq_factor")
            scaling["high_freq_factor"] = number_of(parameters, "high_freq_factor")
            scaling["original_length"] = int(number_of(parameters, "original_max_position_embeddings", length))
        return {"rotary_base": base, "rotary_scaling": scaling}

    def rotary_parameters(self) -> Mapping[str, Any]:
        """Return the parameters of the one spelling that is set; empty if none is."""
        older, newer = self.rope_scaling, self.rope_parameters
        if older and newer and older != newer:
            raise InvalidModelConfig("rope_scaling and rope_parameters differ; keep the one that the model has")
        parameters = older or newer or {}
        if any(isinstance(value, Mapping) for value in parameters.values()):
            raise UnsupportedModel(
                f"the rotary frequencies differ by kind of layer; evalsvc has one set for all layers; {OTHERWISE}"
            )
        return parameters

    def window(self) -> int | None:
        """Return the number of tokens that sliding attention is limited to; None if no layer slides."""
        return None

    def activation(self) -> Activation:
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


class LlamaNamed(Family):
    """A family whose tensors have the names that Llama's have, with separate products for queries, keys and values."""

    embedding = "embed_tokens.weight"
    head = "lm_head.weight"
    has_halves = False
    """Whether files with Meta's names have the dimensions of a head in transformers' order: torchtitan's Qwen3."""

    def __init__(
        self,
        name: str,
        fields: type[HuggingFaceFields],
        attention_norm: str = "input_layernorm",
        ffn_norm: str = "post_attention_layernorm",
    ) -> None:
        self.name, self.fields, self.attention_norm, self.ffn_norm = name, fields, attention_norm, ffn_norm

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

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        """Return the sources by the names of the program that wrote the file: transformers', Meta's, OLMo-core's."""
        sources = dict(self.sources(config))
        if "embeddings.weight" in shapes:
            norms = {self.attention_norm: "attention_norm", self.ffn_norm: "feed_forward_norm"}
            return renamed(sources, renaming(OLMO_CORE_NAMES | norms, "blocks"))
        if "tok_embeddings.weight" not in shapes:
            return sources
        names = META_NAMES | {self.attention_norm: "attention_norm", self.ffn_norm: "ffn_norm"}
        if "layers.0.attention.qkv_linear.wq.weight" in shapes:
            names |= TITAN_NAMES
        if self.head in shapes:
            names["lm_head"] = "lm_head"
        sources = renamed(sources, renaming(names))
        return sources if self.has_halves else sources | neighbours(config, sources)

    def ignores(self, name: str) -> bool:
        return name.endswith(BUFFERS)

    def _layer(self, config: ModelConfig, prefix: str) -> Iterator[tuple[str, Source]]:
        attention, ffn = f"{prefix}.self_attn", f"{prefix}.mlp"
        for kind in ("weight", *(("bias",) if config.attention_bias else ())):
            names = tuple(f"{attention}.{part}_proj.{kind}" for part in "qkv")
            yield f"attention.in_proj.{kind}", Source(names, (config.attention_dim, config.kv_dim, config.kv_dim))
        for kind in ("weight", *(("bias",) if config.output_bias else ())):
            yield f"attention.out_proj.{kind}", Source((f"{attention}.o_proj.{kind}",))
        for part in "qk" if config.qk_norm else "":
            for kind in ("weight", *(("bias",) if config.qk_layer_norm else ())):
                yield f"attention.{part}_norm.{kind}", Source((f"{attention}.{part}_norm.{kind}",))
        for kind in ("weight", *(("bias",) if config.ffn_bias else ())):
            names = (f"{ffn}.gate_proj.{kind}", f"{ffn}.up_proj.{kind}")
            yield f"feed_forward.w12.{kind}", Source(names, (config.ffn_dim, config.ffn_dim))
            yield f"feed_forward.w3.{kind}", Source((f"{ffn}.down_proj.{kind}",))
        yield "attention_norm.weight", Source((f"{prefix}.{self.attention_norm}.weight",))
        yield "ffn_norm.weight", Source((f"{prefix}.{self.ffn_norm}.weight",))


def renamed(sources: Mapping[str, Source], rename: Callable[[str], str]) -> dict[str, Source]:
    return {
        each: replace(source, names=tuple(map(rename, source.names)), aliases=tuple(map(rename, source.aliases)))
        for each, source in sources.items()
    }


def renaming(names: Mapping[str, str], layers: str = "layers") -> Callable[[str], str]:
    """Return a function from transformers' name of a tensor to another program's, by `names` without the layer."""

    def rename(name: str) -> str:
        *parts, kind = name.split(".")
        layer = [layers, parts[1]] if parts[0] == "layers" else []
        part = ".".join(parts[len(layer) :])
        return ".".join([*layer, names.get(part, part), kind])

    return rename


def neighbours(config: ModelConfig, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Return the products to queries and keys of a file whose rotation turns neighbouring dimensions of a head."""
    arrange = partial(halves, config.n_heads + config.kv_heads, config.head_dim)
    return {name: replace(source, arrange=arrange) for name, source in sources.items() if ".in_proj." in name}


def halves(heads: int, head_dim: int, rows: Tensor) -> Tensor:  # [(H + 2·KV)·head_dim, …]
    """Move the even dimensions of each head of queries and keys before the odd dimensions."""
    arranged = rows.clone()
    turned = rows[: heads * head_dim].reshape(heads, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2)
    arranged[: heads * head_dim] = turned.flatten(0, 2)
    return arranged


def read_fields(
    name: str, kind: type[HuggingFaceFields], fields: Mapping[str, object], source: str, shown: Mapping[str, object]
) -> ModelConfig:
    parsed = validated(kind, fields, source, shown, f"a {name} configuration")
    try:
        parsed.refuse_unknown_parts()
        switches = {"family": name, **parsed.switches()}
    except (InvalidModelConfig, UnsupportedModel) as error:
        raise type(error)(f"{source}: {error.message}") from None
    given = {key: value for key, value in switches.items() if value is not None}
    return validated(ModelConfig, given, source, {}, f"a {name} configuration that evalsvc can compute")


def number_of(parameters: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidModelConfig(f"{name} of the rotary frequencies is missing or no number; add it")
    if not abs(value) < 2**62:
        raise InvalidModelConfig(f"{name} of the rotary frequencies is not finite or too large; correct it")
    return float(value)
