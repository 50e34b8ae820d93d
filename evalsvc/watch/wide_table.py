"""Checkpoints whose embedding table has more rows than the tokenizer has ids, and which therefore need a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evalsvc.client import Client
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.families.reading import find_model_config
from evalsvc.spec.layout import TOKENIZER_SIZE

SPARE_ROWS = 512
"""Most padding rows of a table of text. The table of GPT-NeoX has 155 rows more than its tokenizer has ids."""


def require_layout(client: Client, checkpoint: Path, model: Mapping[str, object] | None, suites: Sequence[str]) -> None:
    """Refuse to post a checkpoint without a layout if its embedding table holds more than text.

    The table is compared with the largest tokenizer that the tasks of `suites` name and this machine can read, or else
    with the tokenizer of open_lm, GPT-NeoX-20B. A checkpoint whose configuration is not on this machine passes.

    Raises:
        InvalidRequest: the table has more rows than the tokenizer has ids.
        ServiceUnreachable, UnknownName: the service does not answer, or a suite does not exist.
    """
    rows = _rows(checkpoint, model)
    if rows is None:
        return
    sizes = [size for suite in suites for size in _tokenizer_sizes(client, suite)]
    ids, owner = (max(sizes), "the suite's") if sizes else (TOKENIZER_SIZE, "open_lm's")
    if rows <= ids + SPARE_ROWS:
        return
    all_text = f'{{"text": {{"size": {rows}}}}}'
    raise InvalidRequest(
        f"{checkpoint.name}: the table has {rows:,} rows and {owner} tokenizer {ids:,} ids; name the "
        "image rows by --layout FILE (`evalsvc doctor layout CHECKPOINT --pairs PAIRS` finds the layout); if all rows "
        f"are text, give --layout '{all_text}'"
    )


def _rows(checkpoint: Path, model: Mapping[str, object] | None) -> int | None:
    """Return the rows of the embedding table by the model's configuration; None if the configuration is not found."""
    try:
        config = model or find_model_config(checkpoint)
    except (EvalsvcError, OSError):  # the service reports a wrong configuration
        return None
    rows = None if config is None else config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _tokenizer_sizes(client: Client, suite: str) -> list[int]:
    """Return the sizes of the tokenizers that a suite names and this machine can read."""
    sizes = []
    for task in client.suite(suite).tasks:
        path = task.get("tokenizer")
        if isinstance(path, str) and Path(path).is_absolute():
            try:
                sizes.append(read_tokenizer(path).size)
            except EvalsvcError:  # the file is only on the service's machine, or the library is not installed
                continue
    return sizes
