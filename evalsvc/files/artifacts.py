"""Artifacts: what an evaluation leaves to be looked at, kept under the digest of its content: never torn or doubled."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from evalsvc.errors import ArtifactNotWritten, os_reason
from evalsvc.files.atomic import PARTIAL, write_whole

log = logging.getLogger(__name__)

DROPPED_AT_ONCE = 200
"""Contents that are looked up and removed together: whoever stores a result waits for that."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    kind: str
    """What it is, for queries: `grid`, `sample`, …"""
    name: str
    """A file name, unique within its task."""
    media_type: str
    content: bytes
    details: Mapping[str, object] = field(default_factory=dict)
    """What it was made from, JSON-able: prompt, seed, sampling parameters."""


@dataclass(frozen=True)
class KeptArtifact:
    """An artifact whose content is in the data folder."""

    kind: str
    name: str
    media_type: str
    details: Mapping[str, object]
    sha256: str
    """Of the content, which is also its place; see `artifact_path`."""
    size: int


def keep_artifact(folder: Path, artifact: Artifact) -> KeptArtifact:
    """Keep the content of an artifact. Raises ArtifactNotWritten."""
    sha256, size = keep_content(folder, artifact.content), len(artifact.content)
    return KeptArtifact(artifact.kind, artifact.name, artifact.media_type, dict(artifact.details), sha256, size)


naming = threading.Lock()
"""Held between writing a content and naming it in the database, and while what nothing names is removed: a content that
was there already, and is about to be named again, must not go away in between."""


def artifact_path(folder: Path, sha256: str) -> Path:
    """Where the content with this digest lies."""
    return folder / sha256[:2] / sha256


def keep_content(folder: Path, content: bytes, what: str = "an artifact") -> str:
    """Write content to its place, whole or not at all, and over what is damaged there; returns its SHA-256.

    `what` is how the message calls it.

    Raises:
        ArtifactNotWritten: no space, no permission.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    target = artifact_path(folder, sha256)
    with suppress(OSError):
        read_content(folder, sha256, len(content))
        return sha256
    try:
        write_whole(target, content)
    except OSError as error:
        raise ArtifactNotWritten(
            f"{what} of {len(content):,} bytes cannot be written to {folder}: "
            f"{os_reason(error)}; make room there, then retry the evaluation"
        ) from None
    return sha256


class DamagedContent(OSError):
    """The file of a content has other bytes than were written."""


def read_content(folder: Path, sha256: str, size: int | None = None) -> bytes:
    """Read the content with this digest, and check the bytes that are returned; no more than `size` are read.

    Raises:
        DamagedContent: the file has other bytes.
        OSError: there is no such file, or it cannot be read.
    """
    if not _DIGEST.fullmatch(sha256):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    descriptor = os.open(artifact_path(folder, sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        is_sound = stat.S_ISREG(found.st_mode) and size in (None, found.st_size)
        content = stream.read(found.st_size) if is_sound else b""
    if not is_sound or hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedContent(errno.EIO, "it is not what was written")
    return content


def drop_contents(folder: Path, digests: Collection[str], named: Callable[[Collection[str]], Collection[str]]) -> int:
    """Remove those of these contents that nothing names, as `named` says of some of them. Returns the bytes."""
    freed = 0
    rest = sorted(digests)
    for start in range(0, len(rest), DROPPED_AT_ONCE):
        piece = rest[start : start + DROPPED_AT_ONCE]
        with naming:
            kept = named(piece)
            for path in (artifact_path(folder, sha256) for sha256 in piece if sha256 not in kept):
                freed += _remove(path)
    return freed


def _remove(path: Path) -> int:
    """Remove a file; its bytes. What cannot be removed is swept at a later start; no result is lost over it."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
        return 0
    return size


def drop_orphans(folder: Path, named: Collection[str]) -> int:
    """Remove every content whose digest is not among `named`, and parts of contents. Returns how many."""
    orphans = [path for path in folder.glob("??/*") if path.name not in named and _is_ours(path)]
    for path in orphans:
        _remove(path)
    return len(orphans)


def _is_ours(path: Path) -> bool:
    """Whatever else lies there is not ours to remove."""
    return path.suffix == PARTIAL or (len(path.name) == 64 and path.name.startswith(path.parent.name))
