"""Checkpoints that need a layout, for images of their suites, or for a table with more rows than the tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from evalsvc.checkpoints.formats import is_adapter
from evalsvc.client import Client
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.families.reading import BY_TRANSFORMERS, find_model_config
from evalsvc.spec.layout_presets import TOKENIZER_SIZE
from evalsvc.spec.model_config import OPEN_LM

SPARE_ROWS = 512
"""Most padding rows of a table of text. The table of GPT-NeoX has 155 rows more than its tokenizer has ids."""

IMAGE_KINDS = ("alignment", "text_to_image")
"""Kinds of tasks that need the image block of a layout, whatever their parameters are."""


def require_layout(
    client: Client, checkpoint: Path | None, model: Mapping[str, object] | None, suites: Sequence[str]
) -> None:
    """Refuse to post a checkpoint without a layout if a suite is about images, or if the table holds more than text.

    A suite is about images if the kind of a task is, or if data of a task on this machine has image codes. The table is
    compared with the largest tokenizer that the tasks of `suites` name and this machine can read, or else with the
    `tokenizer.json` next to the checkpoint, or else with the tokenizer of open_lm, GPT-NeoX-20B, if the model is
    open_lm's. A checkpoint passes if its configuration, or the tokenizer of another family, is not on this machine.
    """
    tasks = [(suite, task) for suite in suites for task in client.suite(suite).tasks]
    for suite, task in tasks:
        if task["kind"] in IMAGE_KINDS or (task["kind"] == "loss" and _has_images(task)):
            raise InvalidRequest(
                f"task {task['name']!r} of suite {suite!r} needs the rows of the images; name them by --layout FILE "
                "(`evalsvc layout CHECKPOINT --pairs PAIRS` finds the layout)"
            )
    if checkpoint is None or is_adapter(checkpoint):  # in a store, whose files are not read, or without tables
        return
    config = _config(checkpoint, model)
    if not isinstance(rows := config.get("vocab_size"), int):
        return
    paths = [Path(path) for _, task in tasks if isinstance(path := task.get("tokenizer"), str)]
    sizes = [size for path in paths if path.is_absolute() and (size := _size(path)) is not None]
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    ids, owner = max(sizes, default=None), "the suite's"
    if ids is None:
        ids, owner = _size(folder / "tokenizer.json"), "the model's"
    if ids is None and config.get("family", OPEN_LM) == OPEN_LM:
        ids, owner = TOKENIZER_SIZE, "open_lm's"
    if ids is None or rows <= ids + SPARE_ROWS:
        return
    all_text = f'{{"text": {{"size": {rows}}}}}'
    raise InvalidRequest(
        f"{checkpoint.name}: the table has {rows:,} rows and {owner} tokenizer {ids:,} ids; name the "
        "image rows by --layout FILE (`evalsvc layout CHECKPOINT --pairs PAIRS` finds the layout); if all rows "
        f"are text, give --layout '{all_text}'"
    )


def _config(checkpoint: Path, model: Mapping[str, object] | None) -> Mapping[str, object]:
    try:
        has_sizes = model and model != BY_TRANSFORMERS
        return (model if has_sizes else find_model_config(checkpoint)) or {}
    except (EvalsvcError, OSError):  # the service reports a wrong configuration
        return {}


def _size(path: Path) -> int | None:
    try:
        return read_tokenizer(str(path)).size
    except EvalsvcError:  # the file is not on this machine, or the library is not installed
        return None


def _has_images(task: Mapping[str, object]) -> bool:
    path = str(task.get("data"))
    try:
        if task.get("images") is not None:
            return True
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return bool(json.loads(file.readline(1_000_000))["image_codes"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # a file of another machine or format
        return False
