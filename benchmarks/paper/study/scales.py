"""Sizes at which the findings are computed: the miniature, a real language model, and a quick one for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from study.own_service import Workers


@dataclass(frozen=True)
class Training:
    """Sizes of the trainings that share a learning rate and a number of steps."""

    steps: int
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints, without the last one, which always has a checkpoint."""
    batch: int
    learning_rate: float
    warm_up: int


@dataclass(frozen=True)
class Costs:
    """Seconds on one core, by which the time is estimated before the start."""

    step: float
    """A training step of `Training.batch` sequences."""
    evaluation: Mapping[str, float]
    """An evaluation, by suite."""
    fixed: float
    """What is done once: the training images' codes, the start of the service, the alignment, the figures."""


@dataclass(frozen=True)
class Scale:
    """Everything that differs between the quick, the miniature and the real computation."""

    name: str
    main: Training
    """Both starts, for figures 3 and 4, table 1 and FID."""
    variation: Training
    """Trainings of figure 6 and section 2.1, which are many."""
    seeds: tuple[int, ...]
    """Seeds of every pair of a pre-trained and a random start."""
    ema: tuple[float, ...]
    """Decays of the averages of the main trainings."""
    replay: float
    """Share of plain text in the counter-experiment of table 1."""
    sequences: int | None
    """Number of held-out sequences that losses are measured on; None: all."""
    images: int
    """Number of images sampled at the end of each main training."""
    image_metrics: tuple[str, ...]
    alignment_steps: int
    """Number of steps in which figure 7's image rows are aligned."""
    workers: Workers
    trainings_at_once: int
    training_threads: int
    costs: Costs
    benchmarks: tuple[str, ...] = ("cloze",)
    questions: int | None = None
    """Number of questions of each benchmark; None: all."""
    completion_tokens: int = 32
    rates: tuple[float, ...] = field(default=(0.2, 2.0))
    """Factors of the learning rate in section 2.1."""
    batches: tuple[float, ...] = field(default=(0.5, 2.0))
    """Factors of the batch in section 2.1."""


FRESH_SEEDS = (3, 4, 5)
"""Seeds that no training had when the rules of the verdicts were written, by what seeds 0, 1 and 2 had shown."""

MINIATURE = Scale(
    name="miniature",
    main=Training(1_200, (0, 10, 20, 40, 80, 150, 300, 600), batch=32, learning_rate=5e-3, warm_up=40),
    variation=Training(300, (0, 20, 80, 150), batch=32, learning_rate=5e-3, warm_up=40),
    seeds=FRESH_SEEDS,
    ema=(0.99,),
    replay=0.5,
    sequences=None,
    images=2_304,
    image_metrics=("fid", "fid64"),
    alignment_steps=1_000,
    workers=Workers(2, 1),
    trainings_at_once=2,
    training_threads=1,
    costs=Costs(0.2, {"losses": 3, "language": 10, "images": 350, "floor": 40, "alignment": 3, "image_only": 2}, 900),
)

QUICK = Scale(
    name="quick",
    main=Training(6, (0, 2), batch=4, learning_rate=5e-3, warm_up=2),
    variation=Training(3, (0,), batch=4, learning_rate=5e-3, warm_up=2),
    seeds=(0, 1),
    ema=(0.5,),
    replay=0.5,
    sequences=24,
    images=72,
    image_metrics=("fid64",),
    alignment_steps=20,
    workers=Workers(2, 1),
    trainings_at_once=2,
    training_threads=1,
    costs=Costs(0.05, {"losses": 1, "language": 2, "images": 12, "floor": 9, "alignment": 1, "image_only": 1}, 61),
    questions=24,
    completion_tokens=8,
    rates=(0.2,),
    batches=(2.0,),
)

REAL = Scale(
    name="real",
    main=Training(200, (0, 10, 20, 50, 100), batch=4, learning_rate=5e-4, warm_up=10),
    variation=Training(0, (), batch=4, learning_rate=5e-4, warm_up=10),
    seeds=FRESH_SEEDS,
    ema=(),
    replay=0.0,
    sequences=100,
    images=0,
    image_metrics=(),
    alignment_steps=0,
    workers=Workers(1, 2),
    trainings_at_once=1,
    training_threads=2,
    costs=Costs(4.0, {"losses": 90, "language": 420}, 120),
    benchmarks=("arc_easy", "piqa", "lambada_openai"),
    questions=300,
    completion_tokens=48,
)

SCALES: Mapping[str, Scale] = {scale.name: scale for scale in (MINIATURE, QUICK, REAL)}
