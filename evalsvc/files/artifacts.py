"""Artifacts of evaluations, for people to look at, stored by the digest of their content."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from evalsvc.errors import ArtifactNotWritten, os_reason
from evalsvc.files.atomic import PARTIAL, FileLost, open_regular, write_whole

log = logging.getLogger(__name__)

DROPPED_PER_LOCK = 200
"""Number of contents that are removed under one lock, for which a stored result may have to wait."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    kind: str
    """Kind of artifact, for queries: `grid`, `sample`, …"""
    name: str
    """File name, unique within the task."""
    media_type: str
    content: bytes
    details: Mapping[str, object] = field(default_factory=dict)
    """Origin of the artifact, JSON-able: prompt, seed, sampling parameters."""


@dataclass(frozen=True)
class KeptArtifact:
    """An artifact whose content is in the data folder."""

    kind: str
    name: str
    media_type: str
    details: Mapping[str, object]
    sha256: str
    """Digest of the content, which determines the content's path; see `artifact_path`."""
    size: int


def keep_artifact(folder: Path, artifact: Artifact) -> KeptArtifact:
    sha256, size = keep_content(folder, artifact.content), len(artifact.content)
    return KeptArtifact(artifact.kind, artifact.name, artifact.media_type, dict(artifact.details), sha256, size)


naming = threading.Lock()
"""Lock between writing a content and naming it in the database, and while unnamed contents are removed: a content that
exists already, and is about to be named again, must not be removed in between.
"""


def artifact_path(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / sha256


def keep_content(folder: Path, content: bytes, what: str = "an artifact") -> str:
    """Write content, `what` in messages, whole or not at all; replace a damaged file; return its SHA-256."""
    sha256 = hashlib.sha256(content).hexdigest()
    with suppress(FileLost):
        read_content(folder, sha256, len(content))
        return sha256
    write_result(artifact_path(folder, sha256), content, what)
    return sha256


def write_result(target: Path, content: bytes, what: str, mode: int = 0o600) -> None:
    """Write a part of a result, called `what` in the message."""
    try:
        write_whole(target, content, mode=mode)
    except OSError as error:
        raise ArtifactNotWritten(
            f"{what}, {len(content):,} bytes, cannot be written to {target.parent}: {os_reason(error)}; make room "
            "there, then retry the evaluation"
        ) from None


def read_content(folder: Path, sha256: str, size: int | None = None) -> bytes:
    """Read the content with this digest and check it; read no more than `size` bytes."""
    path = artifact_path(folder, sha256)
    if not _DIGEST.fullmatch(sha256):
        raise FileLost(f"{sha256!r} is no digest")
    try:
        with open_regular(path) as stream:
            content = stream.read(-1 if size is None else size + 1)
    except OSError as error:
        raise FileLost(f"{path} cannot be read: {os_reason(error)}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FileLost(f"{path} is damaged: its bytes are not those that were written")
    return content


def drop_contents(folder: Path, digests: Collection[str], named: Callable[[Collection[str]], Collection[str]]) -> int:
    """Remove the contents that nothing names, according to `named`; return the freed bytes."""
    freed, ordered = 0, sorted(digests)
    for start in range(0, len(ordered), DROPPED_PER_LOCK):
        piece = ordered[start : start + DROPPED_PER_LOCK]
        with naming:
            kept = named(piece)
            freed += sum(remove(artifact_path(folder, sha256)) for sha256 in piece if sha256 not in kept)
    return freed


def remove(path: Path) -> int:
    """Remove a file and return its bytes. A file that cannot be removed is swept later; no result is lost."""
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
    """Remove contents whose digest is not in `named`, and partial contents, but no other files; return their number."""
    orphans = [
        path
        for path in folder.glob("??/*")
        if path.name not in named
        if path.suffix == PARTIAL or (len(path.name) == 64 and path.name.startswith(path.parent.name))
    ]
    for path in orphans:
        remove(path)
    return len(orphans)
