"""Where a checkpoint is and whether it is still the one that was posted. Torch-free: weights are opened in `models`."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from evalsvc.checkpoints.expression import Expression
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    CheckpointNotFound,
    EvalsvcError,
    NotACheckpoint,
    ShardedCheckpoint,
    os_reason,
)
from evalsvc.spec.paths import lies_within

Spool = Literal["none", "link", "copy"]

UPLOAD = "upload:"
"""Begins the uri of an uploaded checkpoint; the SHA-256 of the file follows."""

HASH_BLOCK = 8 << 20

MAX_FILES = 1000
"""How many files a folder may hold and still be a checkpoint."""

FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What weights are called in a Hugging Face folder; the first that is there is taken."""

NO_DISK = (Path("/proc"), Path("/sys"), Path("/dev"))
"""What looks like files there is made by the kernel when it is read, and may never end."""


@dataclass(frozen=True)
class Identity:
    """What a stat tells of a file, or of all files of a folder taken together."""

    size: int
    mtime_ns: int
    """0 where there is an etag."""
    etag: str | None = None
    """Which content an object in a store is, in the words of the store; None for files of this machine."""

    def __str__(self) -> str:
        if self.etag is not None:
            return f"{self.size:,} bytes and etag {self.etag}"
        return f"{self.size:,} bytes of {_shown_time(self.mtime_ns)}"


def _shown_time(nanoseconds: int) -> str:
    """Return a time since 1970 as `2026-11-27 14:02:11.208421299 UTC`, with all digits that may differ."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    digits = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}{digits} UTC"


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint as it was posted: all that a worker needs to open it and to know that it is the same."""

    path: str
    """The file or folder to open: the posted one, its spooled copy, or the address of one in a store. For a virtual
    checkpoint, its expression. For an uploaded checkpoint whose file was deleted, its uri."""
    identity: Identity | None = None
    """None: whatever lies there now (a checkpoint evaluated without a service)."""
    sha256: str | None = None
    """The digest that the client sent or that the first worker found; None: not known yet."""
    model: Mapping[str, Any] | None = None
    """The model configuration inline; None: the one next to the checkpoint, or the parents'."""
    layout: Mapping[str, Any] | None = None
    """The vocabulary layout inline; None: every row is text."""
    label: str = "checkpoint"
    """How messages name it, e.g. `run-a step 25`."""
    virtual: Virtual | None = None
    """What a virtual checkpoint is computed from; None: it is a file or folder."""
    source: str | None = None
    """The address that `path` was fetched from; None: it lies where it was posted, or was not fetched yet."""
    roots: Sequence[Path] = (Path("/"),)
    """Where it must lie when it is opened; of a virtual checkpoint, its parents say."""
    closed: Sequence[Path] = ()
    """Where it must not lie, but for roots in there."""


@dataclass(frozen=True)
class Virtual:
    """An expression, and the checkpoints in it."""

    expression: Expression
    """Without ranges."""
    parents: Mapping[str, CheckpointRef]
    """By their names in the expression; each a file or folder."""


@contextmanager
def named(reference: CheckpointRef) -> Iterator[None]:
    """Put the checkpoint's name before the message of an error."""
    try:
        yield
    except EvalsvcError as error:
        raise type(error)(f"{reference.label}: {error.message}") from error


def uploaded_sha256(uri: str) -> str | None:
    """Return the digest in the uri of an uploaded checkpoint; None for any other uri.

    Raises:
        CheckpointNotAllowed: no SHA-256 follows `upload:`.
    """
    if not uri.startswith(UPLOAD):
        return None
    digest = uri.removeprefix(UPLOAD).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CheckpointNotAllowed(
            f"{uri[:120]}: names no uploaded file; give upload: and the SHA-256 of the file in 64 hexadecimal digits"
        )
    return digest


def local_path(uri: str) -> Path:
    """The path that a uri names: a plain path, or `file://`.

    Raises:
        CheckpointNotAllowed: another scheme, a chained uri, or a relative path.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # of what only looks like an IPv6 address
        raise CheckpointNotAllowed(f"{uri}: is no uri ({_reason(error)}); give a path or a file:// uri") from None
    if "::" in uri or "\0" in uri or (parts.scheme and parts.scheme != "file"):
        raise CheckpointNotAllowed(
            f"{uri}: the scheme is not allowed; give a path or a file:// uri that the service and its workers can read"
        )
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise CheckpointNotAllowed(f"{uri}: names the host {parts.netloc!r}; only this machine's files can be read")
    if parts.scheme == "file" and (parts.query or parts.fragment):
        raise CheckpointNotAllowed(f"{uri}: holds '?' or '#', which a path in a uri writes as %3F and %23")
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
    if not path.is_absolute():
        raise CheckpointNotAllowed(f"{uri}: is a relative path; give an absolute one")
    return path


def locate(uri: str, roots: Sequence[Path], closed: Sequence[Path] = ()) -> Path:
    """The existing file or folder that `uri` names, with links resolved.

    Raises:
        CheckpointNotAllowed: it, or a file in it, does not lie under one of `roots`, lies under one of `closed`, or is
            none that lies on a disk.
        CheckpointNotFound: nothing is there, or it cannot be read.
        NotACheckpoint: it is a folder of more than MAX_FILES files.
    """
    resolved = resolve_inside(local_path(uri), roots, uri, closed)
    try:
        _require_on_disk(resolved, uri)
    except (OSError, ValueError) as error:
        raise CheckpointNotFound(f"{uri}: {_reason(error)}; post it when the file is complete") from None
    if not os.access(resolved, os.R_OK):
        raise CheckpointNotFound(f"{uri}: this process may not read it; change its permissions")
    try:
        for file in files_of(resolved, MAX_FILES):
            require_inside(file.resolve(), roots, str(file), closed)
        for link in _links_in(resolved):
            resolve_inside(link, roots, str(link), closed)
    except OSError as error:
        raise CheckpointNotFound(f"{uri}: {_reason(error)} in it; change its permissions, or post it again") from None
    return resolved


def resolve_inside(path: Path, roots: Sequence[Path], shown: str, closed: Sequence[Path] = ()) -> Path:
    """The path with links resolved, which lies under one of `roots`; something need not be there.

    Of what lies outside, nothing is told but that it does: not whether it exists, nor where a link leads.

    Raises:
        CheckpointNotAllowed: `shown`, as the message calls it, is not.
    """
    current = Path(path.anchor)
    for part in (*path.parts[1:], None):
        if part is not None and part != "..":
            current /= part
            continue
        with suppress(OSError, ValueError):  # no name that a file can have
            current = Path(os.path.realpath(current))
        # Before a step up, too: one from outside would tell whether there is something to step up from.
        _require_under(current, roots, shown, closed)
        current = current if part is None else current.parent
    return current


def require_inside(resolved: Path, roots: Sequence[Path], shown: str, closed: Sequence[Path] = ()) -> None:
    """Raise unless a path without links lies under one of `roots` and is a file or folder on a disk.

    This is the one rule for what may be opened; `opening` asks again of the very file that it has opened.

    Raises:
        CheckpointNotAllowed: `shown`, as the message calls it, is not.
    """
    _require_under(resolved, roots, shown, closed)
    _require_on_disk(resolved, shown)


def _require_under(resolved: Path, roots: Sequence[Path], shown: str, closed: Sequence[Path]) -> None:
    if not lies_within(resolved, (Path("/"), *roots), closed):
        raise CheckpointNotAllowed(
            f"{shown}: leads into the data folder of evalsvc, or to a key or token of it, which are never read; move it"
        )
    if not lies_within(resolved, roots, ()):
        allowed = ", ".join(str(root) for root in roots)
        raise CheckpointNotAllowed(
            f"{shown}: lies, or leads by a link, outside the allowed folders ({allowed}); see EVALSVC_ROOTS"
        )


def _require_on_disk(resolved: Path, shown: str) -> None:
    kind = resolved.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or any(resolved.is_relative_to(place) for place in NO_DISK):
        raise CheckpointNotAllowed(
            f"{shown}: is not a regular file or folder on a disk; give a checkpoint file or a Hugging Face folder"
        )


def _links_in(folder: Path) -> list[Path]:
    """Every link in a folder and below, whether or not something is there where it leads."""
    return [entry for entry in _walk(folder) if entry.is_symlink()] if folder.is_dir() else []


def identify(path: Path) -> Identity:
    """Size and modification time of a file; of a folder, the sum and the newest over its files.

    Raises:
        CheckpointGone: nothing is there any more.
    """
    try:
        stats = [entry.stat() for entry in files_of(path)]
    except OSError as error:
        raise CheckpointGone(f"{path}: {_reason(error)}") from None
    if not stats and not path.is_dir():
        raise CheckpointGone(f"{path}: is neither a file nor a folder")
    return Identity(sum(item.st_size for item in stats), max((item.st_mtime_ns for item in stats), default=0))


def verify(reference: CheckpointRef) -> None:
    """Raise unless the file is the one that was posted; of a virtual checkpoint, every parent's file.

    Raises:
        CheckpointGone: it was deleted.
        CheckpointChanged: its size or modification time is another.
    """
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
            f"{reference.label}: {reference.path} has {now}, was posted with {reference.identity}; "
            "post it again with replace=true"
        )


def parents_of(reference: CheckpointRef) -> Sequence[CheckpointRef]:
    """The checkpoints that a virtual one is computed from; of a file, none."""
    return () if reference.virtual is None else tuple(reference.virtual.parents.values())


def hash_files(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the names and bytes of its files in order of name."""
    total = hashlib.sha256()
    for file in files_of(path):
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(HASH_BLOCK):
                total.update(block)
    return total.hexdigest()


def check_sha256(reference: CheckpointRef, found: str, parents: Mapping[str, str] | None = None) -> None:
    """Raise CheckpointChanged unless `found` is the digest that the reference carries, if it carries one.

    `parents` are the digests found of a virtual checkpoint's parents, which are looked at first.
    """
    if reference.virtual is not None and parents is not None:
        with named(reference):
            for name, parent in reference.virtual.parents.items():
                check_sha256(parent, parents[name])
    if reference.sha256 is not None and reference.sha256 != found:
        raise CheckpointChanged(
            f"{reference.label}: {reference.path} has sha256 {found}, expected {reference.sha256}; "
            "post it again with replace=true"
        )


def files_of(path: Path, limit: int | None = None) -> list[Path]:
    """The files in a folder and below, in order of name; a file itself.

    Raises OSError, and NotACheckpoint where more than `limit` are found.
    """
    if not path.is_dir():
        path.stat()
        return [path] if path.is_file() else []
    found: list[Path] = []
    for count, entry in enumerate(_walk(path)):
        if limit is not None and count >= limit:
            raise NotACheckpoint(f"{path} holds more than {limit:,} files, which no checkpoint does; post one of them")
        if entry.is_file():
            found.append(entry)
    return sorted(found)


def weights_among(names: Collection[str], folder: str) -> str:
    """Return the name of the weights in a folder with these names.

    Raises:
        ShardedCheckpoint: it is a folder of torch.distributed.checkpoint.
        NotACheckpoint: it has no weights, or several that are checkpoints of their own, as the folder of a run has.
    """
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise sharded(folder)
    for name in FOLDER_FILES:
        if name in names:
            return name
    checkpoints = sorted(name for name in names if name.endswith((".pt", ".pth", ".bin", ".safetensors")))
    if checkpoints:
        listing = f"it holds {', '.join(checkpoints[:5])}: post one of them"
    elif "checkpoints" in names:
        listing = f"it is the folder of a run: post one of the files in {folder}/checkpoints"
    else:
        listing = "it holds no weights"
    raise NotACheckpoint(f"{folder} is a folder without {' or '.join(FOLDER_FILES)}; {listing}")


def sharded(folder: str) -> ShardedCheckpoint:
    """Return the error to raise for a folder of torch.distributed.checkpoint."""
    return ShardedCheckpoint(
        f"{folder} is a torch.distributed.checkpoint folder, spread over the ranks that wrote it; make one file of it: "
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pt"
    )


def _walk(folder: Path) -> Iterator[Path]:
    """What lies in a folder and below, as it comes; links to folders are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, EvalsvcError) else os_reason(error)
