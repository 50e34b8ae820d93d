"""Checkpoints whose table has more rows than the tokenizer has ids, so that only a layout says what the rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evalsvc.client import Client
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.spec.layout import TOKENIZER_SIZE
from evalsvc.spec.model_config import find_model_config

SPARE_ROWS = 512
"""Rows that a table of text may have beyond the ids of the tokenizer, because tables are padded. GPT-NeoX's has 155."""


def require_layout(client: Client, checkpoint: Path, model: Mapping[str, object] | None, suites: Sequence[str]) -> None:
    """Refuse a checkpoint that is about to be posted without a layout although its table holds more than text.

    The tokenizer is the largest of those that the tasks of `suites` name and that this machine can read, else open_lm's
    own, that of GPT-NeoX-20B. A checkpoint passes if its configuration is not found on this machine.

    Raises:
        InvalidRequest: the table is wider than the tokenizer.
        ServiceUnreachable, UnknownName: the service does not answer, or has no such suite.
    """
    rows = _rows(checkpoint, model)
    if rows is None:
        return
    sizes = [size for suite in suites for size in _tokenizer_sizes(client, suite)]
    ids, whose = (max(sizes), "the suite's") if sizes else (TOKENIZER_SIZE, "open_lm's")
    if rows <= ids + SPARE_ROWS:
        return
    all_text = f'{{"text": {{"size": {rows}}}}}'
    raise InvalidRequest(
        f"{checkpoint.name}: the table has {rows:,} rows and {whose} tokenizer {ids:,} ids; say by --layout FILE which "
        "rows are image ids (`evalsvc doctor layout CHECKPOINT --pairs PAIRS` finds the layout); if all rows are text, "
        f"give --layout '{all_text}'"
    )


def _rows(checkpoint: Path, model: Mapping[str, object] | None) -> int | None:
    """Return the rows of the embedding table by the model's configuration; None where this machine has none."""
    try:
        config = model or find_model_config(checkpoint)
    except (EvalsvcError, OSError):  # the service says what is wrong with a configuration
        return None
    rows = None if config is None else config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _tokenizer_sizes(client: Client, suite: str) -> list[int]:
    """Return the numbers of ids of the tokenizers that a suite names and this machine can read."""
    sizes = []
    for task in client.suite(suite).tasks:
        path = task.get("tokenizer")
        if isinstance(path, str) and Path(path).is_absolute():
            try:
                sizes.append(read_tokenizer(path).size)
            except EvalsvcError:  # the file is on the service's machine only, or the library is not installed here
                continue
    return sizes
