"""Train a language model on text and images: a loop to learn from, over the project's own Transformer.

    python benchmarks/paper/train.py RECIPE.yaml --work DIR [--server URL --run NAME]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recipe import Recipe


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    on_checkpoint: Callable[[int, Path], None] | None = None,
) -> None:
    """Train by `recipe`, from what lies in `folder` up to the last step, and return.

    The folder holds `recipe.json`, `log.jsonl` with a line for each step, `checkpoints/`, and while the training is not
    done `state.pt`. A training that was interrupted anywhere resumes with the same arguments, and ends with the same
    bytes in `checkpoints/`.

    `on_checkpoint` gets the step and the path of every checkpoint in order of the steps, when all files of the step are
    written. An interrupted training calls it again for the checkpoints that an earlier call wrote. Averages lie next to
    the checkpoint; see `checkpoint_files.saved_checkpoints`, which lists all files with step and variant.

    Raises:
        Conflict: the folder belongs to another recipe.
        InvalidData: data or text do not fit the layout.
        CheckpointError: the start cannot be read, or does not fit model or layout.
        NonFinite: a loss is NaN or infinite; the message names the step.
    """
    raise NotImplementedError
