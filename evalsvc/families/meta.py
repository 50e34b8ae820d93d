"""Meta's layout of its models: `params.json`, and `consolidated.*.pth`, a file or one for each shard of the training.

The names of the tensors are Meta's, and the rotation turns neighbouring dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.errors import CheckpointMismatch
from evalsvc.families import hugging_face
from evalsvc.families.family import Source
from evalsvc.families.hugging_face import META_NAMES, renamed, renaming
from evalsvc.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

MAX_SHARDS = 64

NAMES = META_NAMES | {
    "self_attn.q_norm": "attention.q_normalization",
    "self_attn.k_norm": "attention.k_normalization",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Meta's name of each part of a layer, and of each table, by transformers' name."""


class MetaFields(BaseModel):
    """Fields of `params.json` that Meta's models share."""

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
        }


def meta_family(fields: Mapping[str, object]) -> str | None:
    """Return the family of a `params.json`; None for any other JSON object."""
    model = fields.get("model")
    if isinstance(model, Mapping) and {"dim", "n_layers", "n_heads", "qk_normalization"} <= model.keys():
        return "chameleon"
    is_llama = {"dim", "n_layers", "n_heads", "multiple_of"} <= fields.keys() and "model_type" not in fields
    return "llama" if is_llama else None


def meta_sources(
    config: ModelConfig, sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Source] | None:
    """Return the sources with Meta's names and order; None if a file of tensors with these shapes is not Meta's."""
    if not (prefixes := _prefixes(config, shapes)):
        return None
    by_rows = shapes[f"{prefixes[0]}tok_embeddings.weight"] == (config.vocab_size // len(prefixes), config.hidden_dim)
    is_whole = prefixes == ("",)
    theirs = renamed(sources, _meta_name) if is_whole else dict(_by_shard(config, sources, prefixes, by_rows))
    return theirs | neighbours(config, theirs, len(prefixes))


def heads_of(config: ModelConfig) -> dict[str, int]:
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
    config: ModelConfig, sources: Mapping[str, Source], prefixes: tuple[str, ...], by_rows: bool
) -> Iterator[tuple[str, Source]]:
    """Yield the sources with Meta's names, of tensors that are divided among shards by rows or by columns. The table
    is divided by columns, and since Llama 3 by rows."""
    shards = len(prefixes)
    columns = {"out_proj": (config.hidden_dim, config.attention_dim), "w3": (config.hidden_dim, config.ffn_dim)}
    if not by_rows:
        columns["tok_embeddings"] = (config.vocab_size, config.hidden_dim)
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


_meta_name = renaming(NAMES)


def neighbours(config: ModelConfig, sources: Mapping[str, Source], shards: int) -> dict[str, Source]:
    """Return the sources of a file whose rotation turns neighbouring dimensions of a head, with norms by shard."""
    shapes = ((config.head_dim,),) * shards
    heads = heads_of(config) if config.qk_norm else {}
    return hugging_face.neighbours(config, sources) | {
        name: replace(sources[name], shapes=shapes, arrange=partial(_norms, shards, count // shards))
        for name, count in heads.items()
    }


def _norms(shards: int, heads: int, rows: Tensor) -> Tensor:  # [S·head_dim] → [S·heads, head_dim]
    return repeated(heads, rows.reshape(shards, -1, 2).transpose(1, 2).flatten(1))


def repeated(times: int, rows: Tensor) -> Tensor:  # [R, head_dim] → [R·times, head_dim]
    return rows.repeat_interleave(times, dim=0)


def _side_by_side(shards: int, rows: Tensor) -> Tensor:  # [S·R, C] → [R, S·C]
    return rows.reshape(shards, -1, rows.shape[1]).transpose(0, 1).flatten(1)


def _mean(shards: int, rows: Tensor) -> Tensor:  # [S·D] → [D]
    """Return the mean over the shards, each of which has all values, as transformers' conversion does."""
    return rows.reshape(shards, -1).mean(0)
