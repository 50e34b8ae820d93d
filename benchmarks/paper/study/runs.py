"""The trainings that the findings need, each with its recipe and the suites that its checkpoints are evaluated with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.recipe import Recipe, Replay, Tuned

from study.material import Material
from study.scales import Scale, Training

PRETRAINED, RANDOM, REPLAY = "pretrained", "random", "replay"
STARTS = (PRETRAINED, RANDOM)
MOST_REPEATED = 100
"""Most steps that an interrupted training repeats."""

PARTS: dict[Tuned, str] = {
    "tables": "1: tables",
    "norms": "2: 1 and norms",
    "first-half": "3: 2 and first half",
    "feed-forward": "4: 2 and feed-forward",
}
"""Labels of the parts that figure 6 tunes alone."""


@dataclass(frozen=True)
class PlannedRun:
    """A training, and what its checkpoints are evaluated with."""

    recipe: Recipe
    every: tuple[str, ...]
    """Suites of every checkpoint and variant."""
    raw: tuple[str, ...] = ()
    """Suites of the trained weights of every checkpoint, in addition to `every`."""
    first: tuple[str, ...] = ()
    """Suites of the trained weights at step 0, in addition."""
    last: tuple[str, ...] = ()
    """Suites of the trained weights at the last step, in addition."""

    @property
    def name(self) -> str:
        return self.recipe.name

    def suites(self, step: int, variant: str) -> list[str]:
        """Return the suites of a checkpoint."""
        if variant != "raw":
            return list(self.every)
        at_step = {0: self.first, self.recipe.steps: self.last}
        return [*self.every, *self.raw, *at_step.get(step, ())]


def main_name(start: str, seed: int) -> str:
    """Return the name of a main run."""
    return f"{start}-{seed}"


def main_runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return both starts at every seed. Runs of a seed see the same batches."""
    return [_main_run(scale, material, start, seed) for seed in scale.seeds for start in STARTS]


def _main_run(scale: Scale, material: Material, start: str, seed: int) -> PlannedRun:
    recipe = recipe_of(material, main_name(start, seed), start, scale.main, seed=seed, ema=scale.ema)
    images = ("images",) if scale.images else ()
    if start == PRETRAINED and seed == scale.seeds[0]:
        return PlannedRun(recipe, every=("losses",), raw=("language",), first=("floor",) * bool(images), last=images)
    # What other seeds and the random start say is measured at the end, and what the random start says at the beginning.
    language = ("language",) if start == PRETRAINED or seed == scale.seeds[0] else ()
    first = language if start == RANDOM else ()
    return PlannedRun(recipe, every=("losses",), first=first, last=(*language, *images))


def replay_run(scale: Scale, material: Material) -> PlannedRun:
    """Return the pre-trained start with plain text among the captions."""
    replay = Replay(scale.replay, material.replay_text)
    recipe = recipe_of(material, REPLAY, PRETRAINED, scale.main, seed=scale.seeds[0], replay=replay)
    return PlannedRun(recipe, every=("losses",), raw=("language",))


def image_only_name(what: str, seed: int) -> str:
    """Return the name of a run without captions; `what` is a start that is tuned as a whole, or a part of `PARTS`."""
    return f"images-{what}-{seed}"


def image_only_runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return the runs of figure 6, images without captions: both starts and each part, at every seed."""

    def recipe(what: str, seed: int, start: str, tuned: Tuned = "all") -> Recipe:
        name = image_only_name(what, seed)
        return recipe_of(material, name, start, scale.variation, seed=seed, tuned=tuned, image_only=True)

    whole = [recipe(start, seed, start) for seed in scale.seeds for start in STARTS]
    parts = [recipe(part, seed, PRETRAINED, part) for seed in scale.seeds for part in PARTS]
    return [PlannedRun(recipe, every=("image_only",)) for recipe in (*whole, *parts)]


def aligned_name(seed: int) -> str:
    """Return the name of a run that begins with aligned rows."""
    return f"aligned-{seed}"


def aligned_runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return the pre-trained start at every seed, and a run of each seed that begins with aligned rows."""
    mains = [_main_run(scale, material, PRETRAINED, seed) for seed in scale.seeds]
    # Of these only the losses and the rows before the training are compared.
    plain = [replace(main, raw=(), first=("alignment",), last=()) for main in mains]
    recipes = [
        recipe_of(material, name, PRETRAINED, scale.main, seed=seed, image_rows=material.aligned_rows(seed))
        for seed, name in ((seed, aligned_name(seed)) for seed in scale.seeds)
    ]
    return [*plain, *(PlannedRun(recipe, every=("losses",), first=("alignment",)) for recipe in recipes)]


@dataclass(frozen=True)
class Variation:
    """Settings of section 2.1 that differ from the main runs'."""

    label: str
    key: str
    """Part of the runs' names."""
    training: Training

    def run(self, start: str, seed: int) -> str:
        """Return the name of a run with these settings."""
        return f"{self.key}-{start}-{seed}"


def variations(scale: Scale) -> Iterator[Variation]:
    """Yield the settings of section 2.1: the main learning rate and batch, then one factor at a time."""
    usual = scale.variation
    yield Variation("usual", "usual", usual)
    for factor in scale.rates:
        rate = usual.learning_rate * factor
        yield Variation(f"learning rate × {factor:g}", f"rate-{factor:g}", replace(usual, learning_rate=rate))
    for factor in scale.batches:
        batch = max(1, round(usual.batch * factor))
        yield Variation(f"batch × {factor:g}", f"batch-{factor:g}", replace(usual, batch=batch))


def variation_runs(scale: Scale, material: Material) -> list[PlannedRun]:
    """Return both starts at every seed under every setting of section 2.1."""
    recipes = [
        recipe_of(material, variation.run(start, seed), start, variation.training, seed=seed)
        for variation in variations(scale)
        for seed in scale.seeds
        for start in STARTS
    ]
    return [PlannedRun(recipe, every=("losses",)) for recipe in recipes]


def recipe_of(
    material: Material, name: str, start: str, training: Training, *, seed: int = 0, **changes: Any
) -> Recipe:
    """Return a recipe with the material's data; `changes` are further fields of `Recipe`."""
    weights: dict[str, Any] = {"model": material.model}
    if start == PRETRAINED:
        weights = {"start": material.start, "image_rows": material.image_rows}
    fields: dict[str, Any] = {
        "name": name,
        "steps": training.steps,
        "checkpoint_steps": training.checkpoints,
        "batch": training.batch,
        "learning_rate": training.learning_rate,
        "warm_up": training.warm_up,
        "layout": material.layout,
        "data": material.pool,
        "caption_drop": material.caption_drop,
        "autocast": material.autocast,
        "floor": material.floor,
        "seed": seed,
        "optimizer_files": False,
        "state_every": max(1, min(MOST_REPEATED, training.steps // 8)),
    }
    return Recipe(**{**fields, **weights, **changes})


def distinct(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return runs without repetitions: findings share runs. Suites of the same run are joined."""
    by_name: dict[str, PlannedRun] = {}
    for run in runs:
        known = by_name.get(run.name, run)
        parts = {key: _joined(getattr(known, key), getattr(run, key)) for key in ("every", "raw", "first", "last")}
        by_name[run.name] = replace(run, **parts)
    return list(by_name.values())


def _joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def training_folder(work: Path, run: str) -> Path:
    """Return the folder of a training."""
    return work / "trainings" / run
