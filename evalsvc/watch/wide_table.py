"""Checkpoints whose embedding table has more rows than the tokenizer has ids, and which therefore need a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evalsvc.client import Client
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.families.reading import BY_TRANSFORMERS, find_model_config
from evalsvc.spec.layout import TOKENIZER_SIZE
from evalsvc.spec.model_config import OPEN_LM

SPARE_ROWS = 512
"""Most padding rows of a table of text. The table of GPT-NeoX has 155 rows more than its tokenizer has ids."""


def require_layout(client: Client, checkpoint: Path, model: Mapping[str, object] | None, suites: Sequence[str]) -> None:
    """Refuse to post a checkpoint without a layout if its embedding table holds more than text.

    The table is compared with the largest tokenizer that the tasks of `suites` name and this machine can read, or else
    with the `tokenizer.json` next to the checkpoint, or else with the tokenizer of open_lm, GPT-NeoX-20B, if the model
    is open_lm's. A checkpoint passes if its configuration, or the tokenizer of another family, is not on this machine.

    Raises:
        InvalidRequest: the table has more rows than the tokenizer has ids.
        ServiceUnreachable, UnknownName: the service does not answer, or a suite does not exist.
    """
    config = _config(checkpoint, model)
    rows = config.get("vocab_size")
    sizes = [size for suite in suites for size in _suite_sizes(client, suite)] if isinstance(rows, int) else []
    ids, owner = (max(sizes), "the suite's") if sizes else _own_size(checkpoint, config)
    if not isinstance(rows, int) or ids is None or rows <= ids + SPARE_ROWS:
        return
    all_text = f'{{"text": {{"size": {rows}}}}}'
    raise InvalidRequest(
        f"{checkpoint.name}: the table has {rows:,} rows and {owner} tokenizer {ids:,} ids; name the "
        "image rows by --layout FILE (`evalsvc doctor layout CHECKPOINT --pairs PAIRS` finds the layout); if all rows "
        f"are text, give --layout '{all_text}'"
    )


def _config(checkpoint: Path, model: Mapping[str, object] | None) -> Mapping[str, object]:
    """Return the model's configuration; empty if the configuration is not found."""
    try:
        has_sizes = model and model != BY_TRANSFORMERS
        return (model if has_sizes else find_model_config(checkpoint)) or {}
    except (EvalsvcError, OSError):  # the service reports a wrong configuration
        return {}


def _own_size(checkpoint: Path, config: Mapping[str, object]) -> tuple[int | None, str]:
    """Return the size of the model's own tokenizer, or of its family's, and whose tokenizer that is."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (size := _size(folder / "tokenizer.json")) is not None:
        return size, "the model's"
    return (TOKENIZER_SIZE if config.get("family", OPEN_LM) == OPEN_LM else None), "open_lm's"


def _suite_sizes(client: Client, suite: str) -> list[int]:
    """Return the sizes of the tokenizers that a suite names and this machine can read."""
    paths = [task.get("tokenizer") for task in client.suite(suite).tasks]
    sizes = [_size(Path(path)) for path in paths if isinstance(path, str) and Path(path).is_absolute()]
    return [size for size in sizes if size is not None]


def _size(path: Path) -> int | None:
    """Return the number of ids of a tokenizer; None if this machine cannot read it."""
    try:
        return read_tokenizer(str(path)).size
    except EvalsvcError:  # the file is not on this machine, or the library is not installed
        return None
