"""The model before the first step: random, or a checkpoint whose tables are widened by the layout's new rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evalsvc.errors import CheckpointMismatch, InvalidRequest, UnsupportedModel
from evalsvc.families.reading import resolve_config
from evalsvc.models import ModelConfig, Transformer, load_model
from evalsvc.spec.layout import VocabularyLayout, parse_layout, text_only
from evalsvc.spec.model_config import OPEN_LM, TRANSFORMERS
from trainer.aligned_rows import put_rows
from trainer.recipe import RANDOM, Recipe

TABLES = ("tok_embeddings.weight", "output.weight")
LAST_PRODUCTS = ("out_proj.weight", "w3.weight", "down_proj.weight", "feed_forward.2.weight")
"""Matrices that write into the residual stream, whose initial values are smaller in deeper layers."""
CUT = 3.0
"""Standard deviations at which initial values are cut off."""


@dataclass(frozen=True, eq=False)
class Start:
    """A model before the first step."""

    model: Transformer
    layout: VocabularyLayout
    """Layout with the rows of the model's table."""
    source: Path | None
    """Folder of the configuration and the tokenizer that a Hugging Face checkpoint is written with; None for
    open_lm."""


def starting_model(recipe: Recipe, device: str = "cpu") -> Start:
    """Build the model of a recipe in float32.

    Raises:
        CheckpointMismatch: the layout has fewer rows than the start, or no room for the start's rows, or the image rows
            are of another table.
        InvalidRequest: the start has no `config.json` to write into Hugging Face folders.
        UnsupportedModel: the package transformers computes the model, and not the Transformer.
        CheckpointError, InvalidLayout, InvalidModelConfig: as `load_model`, `parse_layout` and `resolve_config`.
    """
    narrow = None if recipe.start == RANDOM else _loaded(recipe)
    config = _shape(recipe) if narrow is None else narrow.config
    if config.family == TRANSFORMERS:
        raise UnsupportedModel(
            f"{recipe.model or recipe.start} has no family that evalsvc computes; train a model of another family"
        )
    layout = _layout(recipe, config)
    assert layout.rows is not None
    model = build(config.model_copy(update={"vocab_size": layout.rows}), recipe.seed)
    if narrow is not None:
        known = _take(model, narrow, layout)
        if recipe.image_rows == "like-text":
            _draw_like_text(model, known, recipe.seed)
    if isinstance(recipe.image_rows, Path):
        put_rows(model.tok_embeddings.weight, recipe.image_rows)
    return Start(model.to(device), layout, _source(recipe, config))


def build(config: ModelConfig, seed: int) -> Transformer:
    """Return a model with open_lm's initialisation.

    Matrices are normal with the standard deviation 1 / sqrt(inputs), cut off at three; those that write into the
    residual stream are divided by sqrt(2 · layer), with layers counted from 1. Norms are neutral, and biases zero.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation, which is overwritten, uses the global seed
        model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            depth = 2 * (int(name.split(".")[1]) + 1) if name.endswith(LAST_PRODUCTS) else 1
            std = (parameter.shape[1] * depth) ** -0.5
            nn.init.trunc_normal_(parameter, std=std, a=-CUT * std, b=CUT * std, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def _loaded(recipe: Recipe) -> Transformer:
    start = Path(recipe.start)
    return load_model(start, None if recipe.model is None else _spec(recipe.model))


def _shape(recipe: Recipe) -> ModelConfig:
    assert recipe.model is not None, "the recipe was checked"
    folder = Path(recipe.model)
    if folder.is_dir():
        return resolve_config(None, folder)
    return resolve_config(_spec(recipe.model), folder)


def _spec(model: str | Path) -> str:
    path = Path(model)
    return str(path / "config.json" if path.is_dir() else path)


def _source(recipe: Recipe, config: ModelConfig) -> Path | None:
    """Return the folder of the `config.json` that describes the start."""
    if config.family == OPEN_LM:
        return None
    place = Path(recipe.model or "") if recipe.start == RANDOM else Path(recipe.start)
    folder = place if place.is_dir() else place.parent
    if not (folder / "config.json").is_file():
        raise InvalidRequest(
            f"checkpoints of the family {config.family} are Hugging Face folders, and {folder} has no config.json to "
            "write into them; give the folder that has it as `start`, or as `model` of a random start"
        )
    return folder


def _layout(recipe: Recipe, config: ModelConfig) -> VocabularyLayout:
    if recipe.layout is None:
        return text_only(config.vocab_size)
    layout = parse_layout(str(recipe.layout))
    return layout.resolve(layout.rows or config.vocab_size)


@torch.no_grad()
def _take(model: Transformer, narrow: Transformer, layout: VocabularyLayout) -> slice:
    """Copy the start's weights, and return the places of its rows in the tables.

    The rows become the text rows; a start that has all rows already keeps their places.
    """
    rows, wide = narrow.config.vocab_size, model.config.vocab_size
    first = 0 if rows == wide else layout.text.offset
    if first + rows > wide:
        raise CheckpointMismatch(
            f"the start has {rows} rows, and the layout a table of {wide} with the text from row {first} on; use a "
            "layout with `rows` for the widened table"
        )
    known, state = slice(first, first + rows), model.state_dict()
    for name, value in narrow.state_dict().items():
        target = state[name][known] if name in TABLES else state[name]
        target.copy_(value)
    if narrow.saved_inv_freq:
        model.use_frequencies(torch.tensor(narrow.saved_inv_freq))
    return known


@torch.no_grad()
def _draw_like_text(model: Transformer, known: slice, seed: int) -> None:
    """Draw all rows outside of `known`: normal with mean and standard deviation of the known rows, by dimension."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(table): table for table in (model.tok_embeddings.weight, model.output.weight)}
    for table in tables.values():
        text = table[known]
        for rows in (table[: known.start], table[known.stop :]):
            noise = torch.randn(rows.shape, generator=generator)
            rows.copy_(text.mean(0) + noise * text.std(0))
