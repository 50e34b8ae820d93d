"""The alignment of figure 7: image rows that are trained towards their captions, and its record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from trainer.aligned_rows import AlignmentRecipe, align, write_rows
from trainer.starting import starting_model

from evalsvc.data.tokens import read_tokens
from evalsvc.files.atomic import write_whole
from evalsvc.metrics.contrastive import clip_loss
from evalsvc.metrics.item_numbers import Numbers
from evalsvc.metrics.ratio import ratio_of_sums
from evalsvc.metrics.value_interval import ends_of, value_interval
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.tasks.alignment.pair_measures import TokenPairs, pairs_of, similarities, tables_of
from study.material import Material
from study.runs import PRETRAINED, main_name, recipe_of
from study.scales import Scale


@dataclass(frozen=True)
class AlignmentRecord:
    """Course and result of an alignment."""

    losses: list[float]
    """Loss of each step's batch in nats per pair, before the step."""
    temperatures: list[float]
    """Temperature before each step."""
    batch: int
    """Number of pairs in a step."""
    held_out: tuple[float, float | None, float | None]
    """Loss of the held-out pairs at the last temperature, with the ends of its interval."""
    held_out_pairs: int


def align_rows(scale: Scale, material: Material, seed: int) -> None:
    """Align the image rows of the pre-trained start of a seed, and write the rows and the record of the alignment.

    Nothing is done where the file of the rows exists.
    """
    if material.aligned_rows(seed).exists():
        return
    torch.set_num_threads(scale.training_threads)
    start = starting_model(recipe_of(material, main_name(PRETRAINED, seed), PRETRAINED, scale.main, seed=seed))
    layout = start.layout
    assert layout.image_ids is not None, "the material has images"
    training = _pairs(material.training_pairs, layout)
    held_out = _pairs(material.pairs, layout, scale.sequences)
    recipe = AlignmentRecipe(scale.alignment_steps, seed=seed)
    tables = tables_of(start.model, layout, output=False, known=layout.text.size)
    aligned = align(tables, training, recipe)
    *scales, last = aligned.scales
    losses = clip_loss(similarities(aligned.tables, held_out).pairs, last).tolist()
    ratio = ratio_of_sums(losses, [1.0] * len(losses))
    assert ratio is not None, "there are held-out pairs"
    numbers = Numbers([(None, place) for place in held_out.places], [losses])
    record = AlignmentRecord(
        aligned.losses,
        [1 / factor for factor in scales],
        min(recipe.batch, len(training)),
        (ratio.value, *ends_of(value_interval(ratio, "nats/pair", "positive", numbers))),
        len(held_out),
    )
    write_whole(material.alignment_record(seed), json.dumps(asdict(record)).encode())
    write_rows(material.aligned_rows(seed), aligned.tables.image, layout.image_ids)


def read_record(material: Material, seed: int) -> AlignmentRecord:
    """Read the record that `align_rows` wrote."""
    return TypeAdapter(AlignmentRecord).validate_json(material.alignment_record(seed).read_bytes())


def _pairs(path: Path, layout: VocabularyLayout, limit: int | None = None) -> TokenPairs:
    return pairs_of(read_tokens(path), layout, limit).one_per_image()
