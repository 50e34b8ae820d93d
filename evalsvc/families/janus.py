"""Janus and Janus-Pro: a Llama with a table, an aligner and a head of their own for images.

In the transformer, image ids are rows behind those of text. The vision encoder, for understanding, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from evalsvc.errors import InvalidModelConfig, UnsupportedModel
from evalsvc.families.family import Source, validated
from evalsvc.families.hugging_face import LlamaNamed, renamed
from evalsvc.families.llama import LlamaFields
from evalsvc.spec.model_config import MAX_LAYERS, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

NAME = "janus"
OTHERS = ("vision_model.", "aligner.", "gen_vision_model.", "vqmodel.")

AUTHORS = {
    "embed_dim": ("gen_aligner_config", "input_dim"),
    "projection_dim": ("gen_aligner_config", "n_embed"),
    "num_hidden_layers": ("gen_aligner_config", "depth"),
    "hidden_act": ("gen_aligner_config", "projector_type"),
    "num_embeddings": ("gen_head_config", "image_token_size"),
    "image_token_embed_dim": ("gen_head_config", "image_token_embed"),
}
"""The authors' configuration and field, below `params`, of each of transformers' fields of images."""


DEFAULTS: dict[str, object] = {"embed_dim": 8, "num_embeddings": 16_384, "num_hidden_layers": 2, "hidden_act": "gelu"}
DEFAULTS |= {"projection_dim": 2048, "image_token_embed_dim": 2048}
"""Defaults of JanusVQVAEConfig."""


class JanusFields(LlamaFields):
    """Fields of the language model, with LlamaConfig's defaults, and those of images."""

    model_type: str = "llama"
    vocab_size: int = Field(default=32_000, gt=0, le=2**26)
    hidden_size: int = Field(default=4096, gt=0, le=2**20)
    intermediate_size: int = Field(default=11_008, gt=0, le=2**24)
    num_hidden_layers: int = Field(default=32, gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=32, gt=0, le=2**16)
    max_position_embeddings: int = Field(default=2048, gt=0, le=2**26)
    image_tables: dict[str, Any]

    def switches(self) -> dict[str, Any]:
        rows = {"vocab_size": self.vocab_size + self.image_tables["rows"], "weight_tying": False}
        return super().switches() | rows | {"image_tables": self.image_tables}

    def refuse_unknown_parts(self) -> None:
        super().refuse_unknown_parts()
        if self.model_type != "llama":
            raise UnsupportedModel("the language model is no llama, as that of every published Janus is")


class ImageFields(BaseModel):
    """Fields of JanusVQVAEConfig that matter for the language model."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    embed_dim: int = Field(gt=0, le=2**16)
    num_embeddings: int = Field(gt=0, le=2**26)
    projection_dim: int
    image_token_embed_dim: int
    num_hidden_layers: int = Field(gt=0, le=16)
    hidden_act: str

    def image_tables(self) -> dict[str, int]:
        return {"rows": self.num_embeddings, "width": self.embed_dim, "depth": self.num_hidden_layers}


class Janus(LlamaNamed):
    def read(self, fields: Mapping[str, object], source: str, shown: Mapping[str, object]) -> ModelConfig:
        if fields.get("model_type") == "multi_modality":
            language, (images, names) = _part(fields, "language_config", source), _images_of_authors(fields, source)
        else:
            language = _part(fields, "text_config", source)
            images, names = {**DEFAULTS, **_part(fields, "vq_config", source)}, {}
        tables = validated(ImageFields, images, source, {}, "a configuration of Janus' images", names)
        added = {"quantization_config": fields.get("quantization_config"), "image_tables": tables.image_tables()}
        config = super().read({**language, **added}, source, {})
        if tables.hidden_act != "gelu" or {tables.projection_dim, tables.image_token_embed_dim} != {config.hidden_dim}:
            raise UnsupportedModel(
                f"{source}: the aligner and the head of images are not those of a published Janus, of GELU and as wide "
                f"as the language model ({config.hidden_dim:,}); correct the file, or evaluate the language model alone"
            )
        return config

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        tables = config.image_tables
        if tables is None:
            raise InvalidModelConfig(
                "the model is of the family janus and has no image_tables; give the config.json of Janus or Janus-Pro"
            )
        text = config.vocab_size - tables.rows
        language = renamed(super().sources(config), lambda name: f"language_model.{name}")
        table = Source(
            ("language_model.embed_tokens.weight",),
            shapes=((text, config.hidden_dim),),
            arrange=partial(_widened, tables.rows),
        )
        sources = {
            **language,
            "tok_embeddings.weight": table,
            "output.weight": Source(("lm_head.weight", "generation_head.vision_head.weight"), (text, tables.rows)),
            "image_rows.table": Source(("generation_embeddings.weight",)),
            "image_head.bias": Source(("generation_head.vision_head.bias",)),
        }
        for kind in ("weight", "bias"):
            sources[f"image_head.inner.{kind}"] = Source((f"generation_head.proj_out.{kind}",))
            for layer in range(tables.depth):
                name = f"hidden_layers.{layer - 1}" if layer else "fc1"
                sources[f"image_rows.layers.{layer}.{kind}"] = Source((f"generation_aligner.{name}.{kind}",))
        return sources

    def sources_in(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Source]:
        sources = dict(self.sources(config))
        if "gen_embed.weight" in shapes:
            return renamed(sources, _by_authors)
        if "lm_head.weight" not in shapes:  # tied: transformers leaves a tied head out, whatever the configuration says
            head = sources["output.weight"]
            names = ("language_model.embed_tokens.weight", *head.names[1:])
            sources["output.weight"] = Source(names, head.rows)
        return sources

    def ignores(self, name: str) -> bool:
        return name.startswith(OTHERS) or super().ignores(name)


JANUS = Janus(NAME, JanusFields)


def _part(fields: Mapping[str, object], name: str, source: str) -> Mapping[str, object]:
    part = fields.get(name)
    if not isinstance(part, Mapping):
        raise InvalidModelConfig(f"{source} has no object {name}; give the config.json of Janus or Janus-Pro")
    return part


def _images_of_authors(fields: Mapping[str, object], source: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields of images by transformers' names, and the authors' names of the fields for messages."""
    params = {part: _part(_part(fields, part, source), "params", source) for part, _ in AUTHORS.values()}
    given = {name: params[part].get(theirs) for name, (part, theirs) in AUTHORS.items()}
    images: dict[str, object] = {"num_hidden_layers": 1}  # the default of the authors' MlpProjector
    images |= {name: value for name, value in given.items() if value is not None}
    images["hidden_act"] = "gelu" if given["hidden_act"] == "mlp_gelu" else ""
    return images, {name: f"{part}.params.{theirs}" for name, (part, theirs) in AUTHORS.items()}


def _by_authors(name: str) -> str:
    for theirs, own in (
        ("lm_head.", "language_model.lm_head."),
        ("language_model.", "language_model.model."),
        ("generation_embeddings.", "gen_embed."),
        ("generation_aligner.fc1.", "gen_aligner.layers.0."),
        ("generation_head.proj_out.", "gen_head.output_mlp_projector."),
        ("generation_head.", "gen_head."),
    ):
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    _, _, layer, kind = name.split(".")  # generation_aligner.hidden_layers.N
    return f"gen_aligner.layers.{2 * (int(layer) + 1)}.{kind}"


def _widened(count: int, rows: Tensor) -> Tensor:  # [T, D] → [T + count, D]
    """Add rows for image ids, which `Layered.fill_image_rows` fills."""
    wide = rows.new_zeros((len(rows) + count, rows.shape[1]))
    wide[: len(rows)] = rows
    return wide
