"""The header of a safetensors file, checked before anything maps the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalsvc.errors import NotACheckpoint

MAX_HEADER = 25_000_000
"""Bytes: a quarter of the format's own limit, and 100,000 tensors."""


def read_header(path: Path) -> dict[str, Any]:
    """What the header says, checked against the file's size. Raises NotACheckpoint where it is damaged or cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise NotACheckpoint(f"{path} announces a safetensors header of {length:,} bytes, which no model has")
        if 8 + length > size:
            raise NotACheckpoint(f"{path} is cut off inside its safetensors header; copy or write it again")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_each_once)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise NotACheckpoint(f"{path} has a damaged safetensors header; copy or write it again") from error
    if end > size:
        raise NotACheckpoint(f"{path} is cut off: its tensors end at byte {end:,}, the file at {size:,}; copy it again")
    return dict(header)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two entries of one name, of which other readers may take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found
