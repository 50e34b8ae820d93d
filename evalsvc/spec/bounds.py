"""Bounds of what a suite may hold: of each parameter, and of the whole document.

A suite is checked within a request, and every number, list and text in a suite becomes time or memory of the service or
of a worker. Each parameter of a task therefore has a bound far above every honest use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

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
"""How many rows of a data file are used: sequences, documents."""

Images = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
"""How many images are sampled or read."""

Shards = Annotated[int, Field(ge=1, le=MAX_SHARDS)]
"""Parts that work is cut into; each is a row of the service's queue."""

ShardSize = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
"""Units of work in a shard."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

TokenId = Annotated[int, Field(ge=0, le=MAX_ID)]
"""An id of a tokenizer."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
"""Pixels of a side of an image."""

Shots = Annotated[int, Field(ge=0, le=1000)]
"""Solved examples before a question."""

Word = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of a metric, a benchmark or a recipe."""

MAX_VALUES = 25_000
"""Values, keys and containers of a suite, with all defaults filled in: 256 tasks of 40 parameters have that many."""

MAX_CHARACTERS = 500_000
"""Characters of all texts and keys of a suite together, with all defaults filled in."""

MAX_TEXT = 20_000
"""Characters of a text, such as a prompt."""

MAX_DEPTH = 32

_PLAIN = (str, bool, int, float, type(None))


SHOWN = 200
"""Characters of a value that a message quotes."""


def shortened(value: object) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text):,} characters)"


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that is there a second time; None: each is there once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def excess(document: object) -> str | None:
    """What of a document is too much, or no plain value, as a message; None: nothing.

    Every occurrence of a value counts, so that aliases count for what they stand for.
    """
    characters = 0
    for count, (where, depth, value) in enumerate(_walk(document), 1):
        characters += len(value) if isinstance(value, str) else 0
        if wrong := _wrong(value):
            return f"{where}: {wrong}" if where else wrong
        if depth > MAX_DEPTH:
            return f"{where[:SHOWN]}…: it is nested deeper than {MAX_DEPTH}"
        if count > MAX_VALUES:
            return f"it has more than {MAX_VALUES:,} values; put a part into another suite"
        if characters > MAX_CHARACTERS:
            return f"its texts have more than {MAX_CHARACTERS:,} characters together; put a part into another suite"
    return None


def _walk(document: object) -> Iterator[tuple[str, int, object]]:
    """Every value and key with its place and depth, one at a time: who finds too much stops there."""
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
    """Why a single value cannot be in a suite."""
    if isinstance(value, (Mapping, list, tuple)):
        return None
    if not isinstance(value, _PLAIN):
        return f"a {type(value).__name__} is none of text, number, true, false, list and mapping; put it in quotes"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"a text of {len(value):,} characters; give at most {MAX_TEXT:,}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits; give a smaller one"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number that a parameter can have; give a finite one"
    return None
