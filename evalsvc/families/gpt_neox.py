"""GPT-NeoX (Pythia): layer norms, biases, a parallel residual, and one product for queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evalsvc.errors import UnsupportedModel
from evalsvc.families.family import OTHERWISE, Family, Source
from evalsvc.families.hugging_face import HuggingFaceFields, number_of, read_fields
from evalsvc.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

NAME = "gpt_neox"


class GPTNeoXFields(HuggingFaceFields):
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    rotary_emb_base: float = 10_000.0
    rotary_pct: float = Field(default=0.25, ge=0, le=1)
    use_parallel_residual: bool = True
    attention_bias: bool = True

    def switches(self) -> dict[str, Any]:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise UnsupportedModel(
                f"num_key_value_heads is not num_attention_heads; gpt_neox has no grouped heads; {OTHERWISE}"
            )
        return super().switches() | {
            "n_kv_heads": None,
            "head_size": None,
            "model_norm": "default_layer_norm",
            "norm_eps": self.layer_norm_eps,
            "ffn_type": "plain",
            "ffn_bias": True,
            "attention_bias": self.attention_bias,
            "output_bias": self.attention_bias,
            "parallel_residual": self.use_parallel_residual,
        }

    def rotary_switches(self, length: int) -> dict[str, Any]:
        parameters = {
            "rope_theta": self.rotary_emb_base,
            "partial_rotary_factor": self.rotary_pct,
            **self.rotary_parameters(),
        }
        head_dim = self.hidden_size // self.num_attention_heads
        dims = int(head_dim * number_of(parameters, "partial_rotary_factor", self.partial_rotary_factor))
        return self.frequency_switches(parameters, length) | {"rotary_dims": None if dims == head_dim else dims}


class GPTNeoX(Family):
    embedding = "gpt_neox.embed_in.weight"
    head = "embed_out.weight"

    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        return read_fields(NAME, GPTNeoXFields, fields, source, shown)

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        heads = (self.head, "lm_head.weight")  # the latter since transformers 5
        sources = {
            "tok_embeddings.weight": Source((self.embedding,), aliases=heads if config.weight_tying else ()),
            "output.weight": Source(heads[:1], aliases=heads[1:]),
            "norm.weight": Source(("gpt_neox.final_layer_norm.weight",)),
            "norm.bias": Source(("gpt_neox.final_layer_norm.bias",)),
        }
        for layer in range(config.n_layers):
            prefix = f"gpt_neox.layers.{layer}"
            sources |= {f"layers.{layer}.{name}": source for name, source in _layer(config, prefix)}
        return sources

    def ignores(self, name: str) -> bool:
        # Older versions saved the causal mask and the frequencies.
        return name.endswith(("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"))


def _layer(config: ModelConfig, prefix: str) -> Iterator[tuple[str, Source]]:
    by_kind = partial(_by_kind, config.n_heads, config.head_dim)
    for kind in ("weight", "bias"):
        if kind == "weight" or config.attention_bias:
            fused = f"{prefix}.attention.query_key_value.{kind}"
            yield f"attention.in_proj.{kind}", Source((fused,), arrange=by_kind)
            yield f"attention.out_proj.{kind}", Source((f"{prefix}.attention.dense.{kind}",))
        yield f"feed_forward.0.{kind}", Source((f"{prefix}.mlp.dense_h_to_4h.{kind}",))
        yield f"feed_forward.2.{kind}", Source((f"{prefix}.mlp.dense_4h_to_h.{kind}",))
        yield f"attention_norm.{kind}", Source((f"{prefix}.input_layernorm.{kind}",))
        yield f"ffn_norm.{kind}", Source((f"{prefix}.post_attention_layernorm.{kind}",))


def _by_kind(
    n_heads: int,
    head_dim: int,
    fused: Tensor,  # [H·3·head_dim, D] or [H·3·head_dim]
) -> Tensor:
    return fused.reshape(n_heads, 3, head_dim, *fused.shape[1:]).transpose(0, 1).flatten(0, 2)


GPT_NEOX = GPTNeoX()
