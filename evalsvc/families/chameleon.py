"""Chameleon, and the models that were trained from it: Anole and Lumina-mGPT.

Queries and keys have layer norms, of which each head has a row, and the 34B has norms after each part of a layer. Four
programs write the files, in two orders of the dimensions of a head. The shapes of the norms tell the program:

- transformers, since 4.43: [heads, head_dim], dimensions in halves.
- Lumina-mGPT: [shards of the training, head_dim], in halves.
- the fork of transformers that Anole is trained with: [head_dim], in neighbours.
- Meta's `consolidated.pth`, or one file for each shard of the training: [head_dim] and other names, in neighbours.

Everything is read into the first form, whose rotation the Transformer computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import Field

from evalsvc.errors import UnsupportedModel
from evalsvc.families.family import Source, validated
from evalsvc.families.hugging_face import LlamaNamed
from evalsvc.families.llama import LlamaFields
from evalsvc.families.meta import MetaFields, heads_of, meta_family, meta_sources, neighbours, repeated
from evalsvc.spec.model_config import MAX_LAYERS, ModelConfig

NAME = "chameleon"


class ChameleonFields(LlamaFields):
    """Fields of ChameleonConfig, with transformers' defaults, which its files may leave out."""

    vocab_size: int = Field(default=65_536, gt=0, le=2**26)
    hidden_size: int = Field(default=4096, gt=0, le=2**20)
    intermediate_size: int = Field(default=11_008, gt=0, le=2**24)
    num_hidden_layers: int = Field(default=32, gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=32, gt=0, le=2**16)
    num_key_value_heads: int | None = Field(default=32, gt=0, le=2**16)
    max_position_embeddings: int = Field(default=4096, gt=0, le=2**26)
    rms_norm_eps: float = 1e-5
    swin_norm: bool | None = False
    qk_layernorm: bool = True

    def switches(self) -> dict[str, Any]:
        norms = {"qk_norm": True, "qk_norm_per_head": True, "qk_layer_norm": True}
        return super().switches() | norms | {"norm_place": "after" if self.swin_norm else "before"}

    def refuse_unknown_parts(self) -> None:
        super().refuse_unknown_parts()
        if not self.qk_layernorm:
            raise UnsupportedModel(
                "the model has no norms of queries and keys (qk_layernorm is false), as no published Chameleon; save "
                "it as a model of the family llama"
            )


class ChameleonParams(MetaFields):
    """Fields of Chameleon's `params.json`, below `model`; other keys are ignored."""

    qk_normalization: bool = False
    swin_norm: bool = False

    def of_transformers(self) -> dict[str, object]:
        norms = {"swin_norm": self.swin_norm, "qk_layernorm": self.qk_normalization}
        return super().of_transformers() | norms


class Chameleon(LlamaNamed):
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        model = fields.get("model")
        if meta_family(fields) == NAME and isinstance(model, Mapping):
            meta = validated(ChameleonParams, model, f"{source} (model)", {}, "a params.json of Chameleon")
            fields, shown = meta.of_transformers(), {}
        return super().read(fields, source, shown)

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        sources = dict(self.sources(config))
        if (meta := meta_sources(config, sources, shapes)) is not None:
            return meta
        norm = shapes.get("layers.0.self_attn.q_norm.weight", ())
        if len(norm) == 1:
            return sources | neighbours(config, sources, 1)
        rows = norm[0] if norm else 0
        if rows not in (0, config.n_heads) and not config.kv_heads % rows:
            shape, heads = (rows, config.head_dim), heads_of(config)
            return sources | {
                name: replace(sources[name], shapes=(shape,), arrange=partial(repeated, count // rows))
                for name, count in heads.items()
            }
        return sources

    def ignores(self, name: str) -> bool:
        return name.startswith("vqmodel.") or name.endswith(("rope.freqs", "rotary_emb.inv_freq"))


CHAMELEON = Chameleon(NAME, ChameleonFields)
