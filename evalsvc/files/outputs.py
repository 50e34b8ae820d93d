"""Outputs of shards that are too large for a row: files in the shared folder, and rows that name them.

`outputs/<task>/<shard>-<attempt>` belongs to one attempt. A file is complete before the transaction that names it;
files that no row names are orphans and are removed when the service starts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgpack

from evalsvc.errors import os_reason
from evalsvc.files.artifacts import remove, write_result
from evalsvc.files.atomic import FOR_GROUP, PARTIAL, FileLost, open_regular

LARGE = 64 * 1024
"""Number of bytes from which an output is a file."""

EXTENSION = 1
"""MessagePack's type of an `OutputFile` that replaces an output."""

_EXTENSIONS = {bytes([first]) for first in (*range(0xC7, 0xCA), *range(0xD4, 0xD9))}
"""First bytes of every extension in MessagePack."""


@dataclass(frozen=True)
class OutputFile:
    """Reference in a row to the file with an output."""

    task: int
    shard: int
    attempt: int
    sha256: str
    size: int

    def path(self, folder: Path) -> Path:
        return output_path(folder, self.task, self.shard, self.attempt)


class OutputsLost(Exception):
    """Outputs that a merge needs cannot be read; their shards must run again."""

    def __init__(self, files: Sequence[OutputFile], first: FileLost) -> None:
        super().__init__(str(first))
        self.files = files


def output_path(folder: Path, task: int, shard: int, attempt: int) -> Path:
    return folder / str(task) / f"{shard}-{attempt}"


KeptOutput: TypeAlias = bytes | OutputFile


def to_column(kept: KeptOutput) -> bytes:
    if isinstance(kept, bytes):
        return kept
    fields = [kept.task, kept.shard, kept.attempt, kept.sha256, kept.size]
    packed: bytes = msgpack.packb(msgpack.ExtType(EXTENSION, msgpack.packb(fields)))
    return packed


def from_column(content: bytes) -> KeptOutput:
    """Return what `to_column` was given. Raises ValueError where an `OutputFile` has other fields."""
    # An output is a map, so no output begins with an extension's byte.
    if content[:1] not in _EXTENSIONS:
        return content
    try:
        code, fields = msgpack.unpackb(content)
        if code == EXTENSION:
            return OutputFile(*msgpack.unpackb(fields))
    except Exception as error:  # MessagePack raises several types
        raise ValueError(f"the row names no file of an output ({type(error).__name__})") from None
    return content


def keep_output(folder: Path, content: bytes, *, task: int, shard: int, attempt: int) -> KeptOutput:
    """Return the content of the row: the packed output, or the `OutputFile` that was written whole or not at all."""
    if len(content) < LARGE:
        return content
    file = OutputFile(task, shard, attempt, hashlib.sha256(content).hexdigest(), len(content))
    write_result(file.path(folder), content, "the output of a shard", FOR_GROUP)
    return file


def read_output(folder: Path, file: OutputFile) -> bytes:
    """Read the packed output that a row names. After FileLost, its shard must run again."""
    path = file.path(folder)
    try:
        with open_regular(path) as stream:
            content = stream.read(file.size + 1)
    except OSError as error:
        raise FileLost(f"{path}: {os_reason(error)}") from None
    if (len(content), hashlib.sha256(content).hexdigest()) != (file.size, file.sha256):
        raise FileLost(f"{path}: not the {file.size:,} bytes that were written")
    return content


def drop_output(folder: Path, task: int, shard: int, attempt: int) -> None:
    """Remove the file of an attempt whose result was not stored; most attempts have no file."""
    _unlink(output_path(folder, task, shard, attempt))


def drop_outputs(folder: Path, task: int) -> None:
    shutil.rmtree(folder / str(task), ignore_errors=True)


def sweep_outputs(folder: Path, named: Collection[OutputFile]) -> int:
    """Remove outputs and partial outputs that no row names, but no other files; return their number."""
    kept = {file.path(folder) for file in named}
    orphans = []
    for path in folder.glob("*/*"):
        shard, _, attempt = path.name.partition("-")
        is_output = (shard.isdigit() and attempt.isdigit()) or path.suffix == PARTIAL
        if path.parent.name.isdigit() and is_output and path not in kept:
            orphans.append(path)
    for path in orphans:
        _unlink(path)
    return len(orphans)


def _unlink(path: Path) -> None:
    remove(path)
    with suppress(OSError):  # the folder holds other files
        path.parent.rmdir()
