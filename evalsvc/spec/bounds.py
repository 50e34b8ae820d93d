"""Bounds on the suites of a `submitter`: on each parameter, and on the whole document.

Suites are checked within a request, and every number, list and text in a suite costs time or memory on the service or a
worker. Each parameter of a task therefore has a bound far above any honest use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.sampling import MAX_SEED

MAX_ROWS = 1_000_000_000
MAX_IMAGES = 1_000_000
MAX_SHARDS = 10_000
MAX_ID = 2**31 - 1
MAX_TOKENS = 1 << 20
MAX_SIDE = 4096
MAX_BATCH = 1 << 15

Rows = Annotated[int, Field(ge=1, le=MAX_ROWS)]
"""Number of rows of a data file, such as sequences or documents."""

Images = Annotated[int, Field(ge=1, le=MAX_IMAGES)]

Shards = Annotated[int, Field(ge=1, le=MAX_SHARDS)]
"""Number of shards of a task. Each shard is a row of the service's queue."""

ShardSize = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
"""Units of work in a shard."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

TokenId = Annotated[int, Field(ge=0, le=MAX_ID)]

Beginning = TokenId | Literal["none"]
"""The id of the tokenizer that stands before every text, or `none` for no token."""

TextPrefix = Literal["bos", "layout"]
"""What stands before a text without an image: only `bos`, or the tokens of the layout's template."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]  # pixels

Shots = Annotated[int, Field(ge=0, le=1000)]
"""Number of solved examples before a question."""

Word = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of a metric, a benchmark or a recipe."""

MAX_VALUES = 25_000
"""Maximum number of values, keys and containers in a suite, defaults included: as many as 256 tasks of 40
parameters."""

MAX_CHARACTERS = 500_000
"""Maximum number of characters of all texts and keys in a suite together, defaults included."""

MAX_TEXT = 20_000
"""Maximum number of characters of a text, such as a prompt."""

MAX_DEPTH = 32

SHOWN = 200
"""Characters of a value that a message quotes."""


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text):,} characters)"


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that repeats an earlier one; None if all names differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def excess(document: object) -> str | None:
    """Describe what exceeds the bounds of a suite, or is not a plain value; return None if nothing does. Aliases count
    as the values that they stand for."""
    characters = 0
    for count, (where, depth, value) in enumerate(_walk(document), 1):
        characters += len(value) if isinstance(value, str) else 0
        if wrong := _wrong(value):
            return f"{where}: {wrong}" if where else wrong
        if depth > MAX_DEPTH:
            return f"{where[:SHOWN]}…: the suite is nested deeper than {MAX_DEPTH} levels; flatten it"
        if count > MAX_VALUES:
            return f"the suite has more than {MAX_VALUES:,} values; move some tasks to another suite"
        if characters > MAX_CHARACTERS:
            return f"the suite's texts have more than {MAX_CHARACTERS:,} characters; move some tasks to another suite"
    return None


def _walk(document: object) -> Iterator[tuple[str, int, object]]:
    """Yield (place, depth, value) of each key and value, lazily, so that a caller can stop early."""
    waiting: list[Iterator[tuple[str, object]]] = [iter([("", document)])]
    while waiting:
        where, value = next(waiting[-1], (None, None))
        if where is None:
            waiting.pop()
            continue
        yield where, len(waiting), value
        if isinstance(value, Mapping):
            waiting.append(_entries(where, value))
        elif isinstance(value, (list, tuple)):
            waiting.append((_place(where, str(index)), item) for index, item in enumerate(value))


def _entries(where: str, mapping: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    for key, value in mapping.items():
        yield where, key
        yield _place(where, str(key)), value


def _place(where: str, key: str) -> str:
    return f"{where}.{key[:64]}" if where else key[:64]


def _wrong(value: object) -> str | None:
    if isinstance(value, (Mapping, list, tuple)):
        return None
    if not isinstance(value, str | bool | int | float | None):
        return f"a {type(value).__name__} is not a text, number, boolean, list or mapping; put it in quotes"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"a text of {len(value):,} characters; use at most {MAX_TEXT:,}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits; use a smaller number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a valid parameter; use a finite number"
    return None
