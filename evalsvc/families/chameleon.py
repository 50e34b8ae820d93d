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

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.errors import CheckpointMismatch, UnsupportedModel
from evalsvc.families.family import Source, validated
from evalsvc.families.hugging_face import META_NAMES, LlamaNamed, neighbours, renamed, renaming
from evalsvc.families.llama import LlamaFields
from evalsvc.spec.model_config import MAX_LAYERS, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

NAME = "chameleon"
MAX_SHARDS = 64

CHAMELEON_NAMES = META_NAMES | {
    "self_attn.q_norm": "attention.q_normalization",
    "self_attn.k_norm": "attention.k_normalization",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Meta's name of each part of a layer, and of each table, by transformers' name."""


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


class MetaFields(BaseModel):
    """Fields of Meta's `params.json`, below `model`; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    dim: int = Field(gt=0, le=2**20)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int | None = None
    vocab_size: int = Field(gt=0)
    ffn_dim_multiplier: float | None = Field(default=None, gt=0, le=64)
    multiple_of: int = Field(default=256, gt=0, le=2**20)
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    qk_normalization: bool = False
    swin_norm: bool = False

    def of_transformers(self) -> dict[str, object]:
        """Return the fields with the names of transformers."""
        inner = int(int(8 * self.dim / 3) * (1 if self.ffn_dim_multiplier is None else self.ffn_dim_multiplier))
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": -(-inner // self.multiple_of) * self.multiple_of,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads or self.n_heads,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "swin_norm": self.swin_norm,
            "qk_layernorm": self.qk_normalization,
        }


class Chameleon(LlamaNamed):
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        model = fields.get("model")
        if is_meta(fields) and isinstance(model, Mapping):
            meta = validated(MetaFields, model, f"{source} (model)", {}, "a params.json of Chameleon")
            fields, shown = meta.of_transformers(), {}
        return super().read(fields, source, shown)

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        sources = dict(self.sources(config))
        if prefixes := _prefixes(config, shapes):
            sources = renamed(sources, _meta_name) if prefixes == ("",) else dict(_by_shard(config, sources, prefixes))
            return sources | _neighbours(config, sources, len(prefixes))
        norm = shapes.get("layers.0.self_attn.q_norm.weight", ())
        if len(norm) == 1:
            return sources | _neighbours(config, sources, 1)
        rows = norm[0] if norm else 0
        if rows not in (0, config.n_heads) and not config.kv_heads % rows:
            shape, heads = (rows, config.head_dim), _heads(config)
            return sources | {
                name: replace(sources[name], shapes=(shape,), arrange=partial(_repeated, count // rows))
                for name, count in heads.items()
            }
        return sources

    def ignores(self, name: str) -> bool:
        return name.startswith("vqmodel.") or name.endswith(("rope.freqs", "rotary_emb.inv_freq"))


CHAMELEON = Chameleon(NAME, ChameleonFields)


def is_meta(fields: Mapping[str, object]) -> bool:
    """Return whether a JSON object is a `params.json` of Chameleon's kind."""
    model = fields.get("model")
    return isinstance(model, Mapping) and {"dim", "n_layers", "n_heads", "qk_normalization"} <= model.keys()


def _heads(config: ModelConfig) -> dict[str, int]:
    """Return the number of heads of each norm of queries or keys, by the parameter's name."""
    return {
        f"layers.{layer}.attention.{part}_norm.{kind}": count
        for layer in range(config.n_layers)
        for part, count in (("q", config.n_heads), ("k", config.kv_heads))
        for kind in ("weight", "bias")
    }


def _prefixes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return what precedes the names of each of Meta's shards, see `read_weights`; empty for other files."""
    if "tok_embeddings.weight" in shapes:
        return ("",)
    count = next((n for n in range(MAX_SHARDS) if f"{n:02}.tok_embeddings.weight" not in shapes), MAX_SHARDS)
    sizes = (config.hidden_dim, config.vocab_size, config.ffn_dim, config.n_heads, config.kv_heads)
    if count and any(size % count for size in sizes):
        raise CheckpointMismatch(
            f"the files are {count} shards of a model, which do not divide its {config.kv_heads} heads of keys or "
            "another size of it; copy all files consolidated.NN.pth and the params.json of one model"
        )
    return tuple(f"{n:02}." for n in range(count))


def _by_shard(
    config: ModelConfig, sources: Mapping[str, Source], prefixes: tuple[str, ...]
) -> Iterator[tuple[str, Source]]:
    """Yield the sources with Meta's names, of tensors that are divided among shards by rows or by columns."""
    shards = len(prefixes)
    columns = {"tok_embeddings": (config.vocab_size, config.hidden_dim)}
    columns |= {"out_proj": (config.hidden_dim, config.attention_dim), "w3": (config.hidden_dim, config.ffn_dim)}
    for each, source in sources.items():
        names = tuple(f"{prefix}{_meta_name(name)}" for name in source.names for prefix in prefixes)
        part = each.split(".")[-2]
        if part in columns:
            height, width = columns[part]
            shapes = ((height, width // shards),) * shards
            yield each, Source(names, shapes=shapes, arrange=partial(_side_by_side, shards))
        elif part.endswith("norm"):
            shape = (config.head_dim if part in ("q_norm", "k_norm") else config.hidden_dim,)
            yield each, Source(names, shapes=(shape,) * shards, arrange=partial(_mean, shards))
        else:
            rows = source.rows or (config.vocab_size,)
            yield each, Source(names, tuple(count // shards for count in rows for _ in prefixes))


_meta_name = renaming(CHAMELEON_NAMES)


def _neighbours(config: ModelConfig, sources: Mapping[str, Source], shards: int) -> dict[str, Source]:
    """Return the sources of a file whose rotation turns neighbouring dimensions of a head, with norms by shard."""
    shapes = ((config.head_dim,),) * shards
    return neighbours(config, sources) | {
        name: replace(sources[name], shapes=shapes, arrange=partial(_norms, shards, count // shards))
        for name, count in _heads(config).items()
    }


def _norms(shards: int, heads: int, rows: Tensor) -> Tensor:  # [S·head_dim] → [S·heads, head_dim]
    return _repeated(heads, rows.reshape(shards, -1, 2).transpose(1, 2).flatten(1))


def _repeated(times: int, rows: Tensor) -> Tensor:  # [R, head_dim] → [R·times, head_dim]
    return rows.repeat_interleave(times, dim=0)


def _side_by_side(shards: int, rows: Tensor) -> Tensor:  # [S·R, C] → [R, S·C]
    return rows.reshape(shards, -1, rows.shape[1]).transpose(0, 1).flatten(1)


def _mean(shards: int, rows: Tensor) -> Tensor:  # [S·D] → [D]
    """Return the mean over the shards, each of which has all values, as transformers' conversion does."""
    return rows.reshape(shards, -1).mean(0)
