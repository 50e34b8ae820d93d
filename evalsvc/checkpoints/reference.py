"""References to checkpoints, and the identity of their files. `opening` opens them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from evalsvc.checkpoints.expression import Expression, Sum, leaves
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    EvalsvcError,
    NotACheckpoint,
    os_reason,
)
from evalsvc.files.opened import ReadRule

Spool = Literal["none", "link", "copy"]

UPLOAD = "upload:"
"""Begins the uri of an uploaded checkpoint; the SHA-256 of the file follows."""

HASH_BLOCK = 8 << 20

MAX_FILES = 5000
"""Maximum number of files of a checkpoint. OLMo-core writes 16 for each rank."""


@dataclass(frozen=True)
class Identity:
    """The size and modification time of a file, or of all files of a folder together."""

    size: int
    mtime_ns: int
    """Modification time in nanoseconds; 0 if there is an etag."""
    etag: str | None = None
    """Version of an object, as its store names it; None for files of this machine."""

    def __str__(self) -> str:
        if self.etag is not None:
            return f"{self.size:,} bytes and etag {self.etag}"
        # with all digits that may differ: `2026-11-27 14:02:11.208421299 UTC`
        seconds, fraction = divmod(self.mtime_ns, 10**9)
        digits = f".{fraction:09}".rstrip("0") if fraction else ""
        return f"{self.size:,} bytes of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}{digits} UTC"


EVERY_FILE = ReadRule((Path("/"),), error=CheckpointNotAllowed)
"""Rule for the files of a checkpoint that no submitter named."""


@dataclass(frozen=True)
class CheckpointRef:
    """A posted checkpoint: all that a worker needs to open it and to check that it has not changed."""

    path: str
    """File or folder to open: the posted one, its spooled copy, or the address of an object in a store. For a virtual
    checkpoint, its expression. For an uploaded checkpoint whose file was deleted, its uri."""
    identity: Identity | None = None
    """Expected size and modification time; None accepts any file (a checkpoint evaluated without a service)."""
    sha256: str | None = None
    """Digest that the client sent or that the first worker computed; None if unknown."""
    model: Mapping[str, Any] | None = None
    """Model configuration; None: the configuration next to the checkpoint, or that of the parents."""
    layout: Mapping[str, Any] | None = None
    """Vocabulary layout; None: every row is text."""
    label: str = "checkpoint"
    """Name of the checkpoint in messages, e.g. `run-a step 25`."""
    virtual: Virtual | None = None
    source: str | None = None
    """Address that `path` was fetched from; None: the path is the posted one, or was not fetched yet."""
    rule: ReadRule = EVERY_FILE
    """Rule for the files of the checkpoint. The parents of a virtual checkpoint have their own."""


@dataclass(frozen=True)
class Virtual:
    expression: Expression
    parents: Mapping[str, CheckpointRef]
    """Parents by their names in the expression; each is a file or folder, or the folder of an adapter."""

    def models(self) -> Mapping[str, CheckpointRef]:
        models = (str(leaf.first if isinstance(leaf, Sum) else leaf) for leaf in leaves(self.expression))
        return {name: self.parents[name] for name in models}


def with_files(reference: CheckpointRef, change: Callable[[CheckpointRef], CheckpointRef]) -> CheckpointRef:
    """Return the result of `change` for a file or folder; for a virtual checkpoint, change all parents."""
    if reference.virtual is None:
        return change(reference)
    parents = {name: change(parent) for name, parent in reference.virtual.parents.items()}
    return replace(reference, virtual=Virtual(reference.virtual.expression, parents))


@contextmanager
def named(reference: CheckpointRef) -> Iterator[None]:
    """Put the checkpoint's name before the message of an error."""
    try:
        yield
    except EvalsvcError as error:
        raise type(error)(f"{reference.label}: {error.message}") from error


def uploaded_sha256(uri: str) -> str | None:
    """Return the digest in the uri of an uploaded checkpoint; None for any other uri."""
    if not uri.startswith(UPLOAD):
        return None
    digest = uri.removeprefix(UPLOAD).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CheckpointNotAllowed(
            f"{uri[:120]}: names no uploaded file; give upload: and the SHA-256 of the file in 64 hexadecimal digits"
        )
    return digest


def identify(path: Path) -> Identity:
    """Return size and modification time of a file; for a folder, the sum and the maximum over its files."""
    try:
        stats = [entry.stat() for entry in files_of(path)]
    except OSError as error:
        raise CheckpointGone(f"{path}: {os_reason(error)}") from None
    if not stats and not path.is_dir():
        raise CheckpointGone(f"{path}: is neither a file nor a folder")
    return Identity(sum(item.st_size for item in stats), max((item.st_mtime_ns for item in stats), default=0))


def verify(reference: CheckpointRef) -> None:
    """Raise unless the file is the posted one; for a virtual checkpoint, unless every parent's file is."""
    with named(reference):
        for parent in parents_of(reference):
            verify(parent)
    if reference.identity is None or reference.identity.etag is not None:
        return  # the worker that fetches an object from a store compares its etag
    if reference.path.startswith(UPLOAD):
        raise CheckpointGone(
            f"{reference.label}: the uploaded file was deleted once nothing needed it; send the file again: evalsvc "
            "submit RUN STEP FILE --upload"
        )
    try:
        now = identify(Path(reference.path))
    except CheckpointGone:
        raise CheckpointGone(
            f"{reference.label}: {reference.path} was deleted before it was evaluated; "
            "post it again, with spool=link or spool=copy if the training loop deletes its checkpoints"
        ) from None
    if now != reference.identity:
        raise CheckpointChanged(
            f"{reference.label}: {reference.path} has {now}, but was posted with {reference.identity}; "
            "post it again with replace=true"
        )


def parents_of(reference: CheckpointRef) -> Sequence[CheckpointRef]:
    return () if reference.virtual is None else tuple(reference.virtual.parents.values())


def hash_files(path: Path, opened: Callable[[Path], BinaryIO] = lambda file: file.open("rb")) -> str:
    """Return the SHA-256 of a file's bytes; for a folder, of the names and bytes of its files sorted by name."""
    total = hashlib.sha256()
    for file in files_of(path):
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        with opened(file) as stream:
            while block := stream.read(HASH_BLOCK):
                total.update(block)
    return total.hexdigest()


def check_sha256(reference: CheckpointRef, sha256: str, parents: Mapping[str, str] | None = None) -> None:
    """Raise CheckpointChanged unless `sha256`, and first the `parents`' digests, are those in the reference, if any."""
    if reference.virtual is not None and parents is not None:
        with named(reference):
            for name, parent in reference.virtual.parents.items():
                check_sha256(parent, parents[name])
    if reference.sha256 is not None and reference.sha256 != sha256:
        raise CheckpointChanged(
            f"{reference.label}: {reference.path} has sha256 {sha256}, expected {reference.sha256}; "
            "post it again with replace=true"
        )


def files_of(path: Path, limit: int | None = None) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted by name; for a file, the file itself."""
    if not path.is_dir():
        path.stat()
        return [path] if path.is_file() else []
    return sorted(entry for entry in entries_of(path, limit) if entry.is_file())


def entries_of(folder: Path, limit: int | None = None) -> Iterator[Path]:
    """Yield the content of a folder and its subfolders, unsorted. Links to folders are not followed."""
    for count, entry in enumerate(_walk(folder)):
        if limit is not None and count >= limit:
            raise too_many_files(folder, limit)
        yield entry


def too_many_files(folder: object, limit: int) -> NotACheckpoint:
    return NotACheckpoint(f"{folder} holds more than {limit:,} files, too many for a checkpoint; post one of the files")


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
