"""The folder that the service shares with workers of other machines, marked against the `accident` of two services.

The service alone writes to the folder. Each process has a path of its own to it, EVALSVC_SHARED, so a worker makes sure
that the folder at its path is that of the service that sent the shard. Next to `outputs`, the folder has `statistics`:
files that later evaluations reuse, of real images and answers of checkpoints. The name of such a file is a digest of
everything that the content depends on, or was given by `evalsvc reference import`.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from evalsvc.errors import DataDirectoryUnusable, SourceUnreachable, os_reason
from evalsvc.files.atomic import FOR_GROUP, FileLost, open_regular, replacing, write_whole

log = logging.getLogger(__name__)

ANSWERS = "answers"
"""Subfolder of the answers; each of its folders belongs to one checkpoint and one way of asking it."""

FILE_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,143}}\.npz|{ANSWERS}/[0-9a-f]{{64}}/[0-9a-f]{{64}}\.json")
"""Names of kept files, relative to the folder."""

DIGEST_NAME = re.compile(rf"[0-9a-f]{{64}}(\.moments|\.features)?\.npz|{ANSWERS}/[0-9a-f]{{64}}/[0-9a-f]{{64}}\.json")
"""Names under which a shard may store a file. Only `evalsvc reference import` gives other names."""

ANSWER_BYTES = 1 << 30
"""Limit of all answers together; the answers to 11,000 documents take three million bytes."""

CARRIED_BYTES = 3 << 30
"""Most bytes of new files in a result: features of 390,000 images. MessagePack has no room for more than 4 GiB."""

Write = Callable[[BinaryIO], object]


class KeptFolder:
    """Kept files in a folder that this process reads and writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, folder: str = "") -> frozenset[str]:
        """Return the names of the files directly in the folder, or in a subfolder, relative to the folder."""
        prefix = f"{folder}/" if folder else ""
        try:
            files = os.listdir(self.folder / folder)
        except OSError:
            return frozenset()
        return frozenset(name for file in files if FILE_NAME.fullmatch(name := prefix + file))

    def open(self, name: str) -> BinaryIO:
        path = self.folder / name
        if not FILE_NAME.fullmatch(name):
            raise FileLost(f"{name!r} is no name of a kept file")
        try:
            if name.startswith(f"{ANSWERS}/"):
                with suppress(OSError):  # a folder that is only read keeps its order
                    os.utime(path, follow_symlinks=False)
            return open_regular(path)
        except OSError as error:
            raise FileLost(f"{path}: {os_reason(error)}") from None

    def keep(self, name: str, write: Write) -> None:
        """Store the output of `write` under a name that `DIGEST_NAME` allows, replacing an older file."""
        path, is_answer = self.folder / _checked(name), name.startswith(f"{ANSWERS}/")
        try:
            with replacing(path, durable=not is_answer, mode=FOR_GROUP) as stream:
                write(stream)
        except OSError as error:
            raise DataDirectoryUnusable(
                f"{path} cannot be written: {os_reason(error)}; make room or change permissions"
            ) from None
        if is_answer:
            drop_oldest((self.folder / ANSWERS).glob("*/*.json"), ANSWER_BYTES)

    def keep_bytes(self, name: str, content: bytes) -> None:
        self.keep(name, lambda stream: stream.write(content))


class CarriedFiles(KeptFolder):
    """Kept files of a worker, which only reads the folder: the result of its shard carries new files to the service."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.new: dict[str, bytes] = {}

    def names(self, folder: str = "") -> frozenset[str]:
        return super().names(folder) | {name for name in self.new if name.rpartition("/")[0] == folder}

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.new[name]) if name in self.new else super().open(name)

    def keep(self, name: str, write: Write) -> None:
        stream = io.BytesIO()
        write(stream)
        self.new[_checked(name)] = stream.getvalue()

    def carried(self) -> dict[str, bytes]:
        """Return the new files for a result, the small ones first, without those for which a message has no room."""
        carried: dict[str, bytes] = {}
        for name, content in sorted(self.new.items(), key=lambda item: len(item[1])):
            if sum(map(len, carried.values())) + len(content) > CARRIED_BYTES:
                log.warning("%s, %s bytes, is not kept for later evaluations: too large", name, f"{len(content):,}")
                break
            carried[name] = content
        return carried


def _checked(name: str) -> str:
    if not DIGEST_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name to keep a file under")
    return name


def drop_oldest(paths: Iterable[Path], limit: int) -> None:
    """Delete the least recently used files until the remaining files take at most `limit` bytes."""
    by_age = []
    for path in paths:
        with suppress(OSError):  # another process may delete the file in the meantime
            status = path.stat()
            by_age.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(by_age, reverse=True):
        total += size
        if total > limit:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # fails while the folder holds other files


MARKER = "service-id"
"""File with the id of the service's database."""


def claim_shared(folder: Path, service: str) -> None:
    """Make the folder, and mark it as that of a service, unless another one has it, which removes foreign files."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        if (owner := _owner(folder)) == "":
            write_whole(folder / MARKER, service.encode(), mode=FOR_GROUP)
    except OSError as error:
        raise DataDirectoryUnusable(
            f"the shared folder {folder} cannot be used: {os_reason(error)}; change the permissions, or choose another "
            "folder by EVALSVC_SHARED"
        ) from None
    if owner not in ("", service):
        raise DataDirectoryUnusable(
            f"the shared folder {folder} is that of another service; choose another folder by EVALSVC_SHARED, or "
            f"remove {folder / MARKER} if the other service is gone for good"
        )


def shared_owner(folder: Path) -> str:
    """Return the id of the service whose folder this is; empty if no service has claimed the folder."""
    try:
        return _owner(folder)
    except OSError:
        return ""


def require_shared(folder: Path, service: str) -> None:
    """Raise SourceUnreachable unless a worker sees the folder of this service at its own path to the folder."""
    try:
        owner = _owner(folder)
        problem = "it is that of another service"
        if not owner:
            problem = "no service has claimed it, because it does not exist"
            if folder.is_dir():
                problem = f"no service has claimed it, and it holds {len(os.listdir(folder))} other files"
    except OSError as error:
        owner, problem = "", os_reason(error)
    if owner != service:
        raise SourceUnreachable(
            f"the worker on {platform.node()} cannot use {folder} as the folder that it shares with the service: "
            f"{problem}; mount the service's EVALSVC_SHARED there, reading suffices, or set EVALSVC_SHARED of the "
            "worker to the path where it is mounted"
        )


def _owner(folder: Path) -> str:
    try:
        with open_regular(folder / MARKER) as stream:
            return stream.read(128).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
