"""The header of a safetensors file, checked before the file is mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalsvc.errors import NotACheckpoint

MAX_HEADER = 25_000_000
"""Maximum number of bytes of a header: a quarter of the format's own limit, enough for 100,000 tensors."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the header after checking it against the file's size. Raises NotACheckpoint if the file is damaged or
    truncated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise NotACheckpoint(
                f"{path} claims a safetensors header of {length:,} bytes, too many for a model; copy or write it again"
            )
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
    """Refuse duplicate names: other readers may use the other entry."""
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        raise ValueError("a name is given twice")
    return by_name
