"""Files of a service whose data folder is on another machine: fetched in parts, checked, and copied to this machine.

A copy is named by the SHA-256 of its content, so each file is fetched once per machine. The least recently used copies
are deleted first.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from evalsvc.errors import os_reason
from evalsvc.files.atomic import PARTIAL, replacing, write_whole
from evalsvc.files.kept import DIGEST_NAME, KeptFileLost, KeptFiles, Write, drop_oldest, touch
from evalsvc.files.outputs import OutputFile, OutputLost
from evalsvc.files.served import STATISTICS, FileService, Part

log = logging.getLogger(__name__)

COPIES_BYTES = 8 << 30
"""Limit of all copies of a machine together."""

ABANDONED_AFTER = 3600.0
"""Seconds without a write after which a partial copy counts as abandoned by a killed process."""


class ServiceFiles(KeptFiles):
    """Kept files, and outputs of shards, of the service that dispatched the worker's shard."""

    def __init__(self, service: FileService, copies: Path) -> None:
        """Store copies of the service's files in the folder `copies` on this machine."""
        self._service = service
        self._copies = copies
        self.new: dict[str, bytes] = {}
        """Files to store, by name; the shard's result carries the files to the service."""

    def names(self, folder: str = "") -> frozenset[str]:
        prefix = f"{folder}/" if folder else ""
        files = self._service.names(f"{STATISTICS}/{folder}".rstrip("/"))
        return frozenset(prefix + name for name in files) | {
            name for name in self.new if name.rpartition("/")[0] == folder
        }

    def open(self, name: str) -> BinaryIO:
        if name in self.new:
            return io.BytesIO(self.new[name])
        return self.fetch(f"{STATISTICS}/{name}")

    def keep(self, name: str, write: Write) -> None:
        if not DIGEST_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name to keep a file under")
        stream = io.BytesIO()
        write(stream)
        content = self.new[name] = stream.getvalue()
        with suppress(OSError):  # without a copy, this machine fetches the file at the next use
            write_whole(self._copies / hashlib.sha256(content).hexdigest(), content, durable=False)

    def fetch(self, place: str, sha256: str | None = None) -> BinaryIO:
        """Open a copy of the service's file at `place`, which is fetched if this machine has no copy.

        Args:
            sha256: expected digest, by default that of the service's file.

        Raises:
            KeptFileLost: the service has no such file, or the file changed in transit.
        """
        copy = None if sha256 is None else self._copy(sha256)
        if copy is not None:
            return copy
        whole = self._service.part(place, None)
        if whole is None:
            raise KeptFileLost(f"the service has no file {place}, or cannot read it")
        if sha256 not in (None, whole.sha256):
            raise KeptFileLost(f"{place} of the service has other content than was written")
        return self._copy(whole.sha256) or self._fetch(place, whole)

    def output(self, file: OutputFile) -> bytes:
        """Read the packed output of a shard. Raises OutputLost."""
        try:
            with self.fetch(str(file.path(Path("outputs"))), file.sha256) as stream:
                return stream.read()
        except KeptFileLost as error:
            raise OutputLost(str(error)) from None

    def _copy(self, sha256: str) -> BinaryIO | None:
        """Open the copy of a content; None where the copy is missing or damaged."""
        path = self._copies / sha256
        try:
            stream = path.open("rb")
        except OSError:
            return None
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            stream.close()
            return None
        stream.seek(0)
        touch(path)
        return stream

    def _fetch(self, place: str, whole: Part) -> BinaryIO:
        path = self._copies / whole.sha256
        try:
            with replacing(path, durable=False) as stream:
                self._receive(place, whole, stream)
            copy = path.open("rb")
        except OSError as error:  # costs memory, and time at the next use
            log.warning("no copy of %s is kept in %s: %s", place, self._copies, os_reason(error))
            memory = io.BytesIO()
            self._receive(place, whole, memory)
            memory.seek(0)
            return memory
        drop_oldest((other for other in self._copies.iterdir() if _may_go(other) and other != path), COPIES_BYTES)
        return copy

    def _receive(self, place: str, whole: Part, stream: BinaryIO) -> None:
        total, done = hashlib.sha256(), 0
        while done < whole.size:
            part = self._service.part(place, done)
            if part is None or not part.data:
                raise KeptFileLost(f"{place} of the service disappeared while it was fetched")
            done += len(part.data)
            total.update(part.data)
            stream.write(part.data)
        if total.hexdigest() != whole.sha256:
            raise KeptFileLost(f"{place} of the service changed while it was fetched")


def _may_go(path: Path) -> bool:
    """Return whether a file may be deleted to free space; a file that another process is writing may not."""
    try:
        return path.suffix != PARTIAL or time.time() - path.stat().st_mtime > ABANDONED_AFTER
    except OSError:
        return False
