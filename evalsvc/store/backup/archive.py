"""The container of a backup: a plain tar with regular files alone, and a manifest at its end.

`tar -tf` lists a backup, but only what `ArchiveWriter` writes is read back. Every header is compared byte for byte with
the one that a member of this name and size has, so there are no links, devices, folders, sparse files and extended
headers. Names are on an allow-list and strictly ascend, so none comes twice. The manifest has size and SHA-256 of every
member, and nothing follows it but the 1,024 zeros of a tar's end: a file that was cut off anywhere is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO

from evalsvc.errors import BackupUnusable, InvalidRequest, os_reason
from evalsvc.store.backup.members import (
    BLOCK,
    MANIFEST,
    Member,
    Place,
    header,
    padded,
    padding,
    place_after,
    section_of,
)

PIECE = 1 << 20
"""Bytes that are read or written together."""

END = bytes(2 * BLOCK)

MAX_LINE = 1 << 20
"""Bytes of a line of the manifest."""


class Damaged(Exception):
    """A file has another size or other bytes than it must have; it is not in the archive."""


class ArchiveWriter:
    """Writes members one after the other, in the order of the sections and of their names."""

    def __init__(self, stream: BinaryIO, lines: IO[bytes]) -> None:
        """Begin an archive in a file that can be truncated. Call `close` at the end.

        Args:
            lines: an empty file for the lines of the manifest, which are millions where files are small.
        """
        self._stream = stream
        self._lines = lines
        self._last: Place | None = None
        self.members = 0
        self.files = 0

    def add(
        self,
        name: str,
        content: BinaryIO,
        size: int,
        *,
        sha256: str | None = None,
        path: str | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """Add `size` bytes of `content` as the member `name`.

        Args:
            sha256: what the digest must be; None: whatever it is.
            path, mtime_ns: see `Member`.

        Raises:
            Damaged: the content ends early or has another digest; the archive is as it was before.
            OSError: no space.
        """
        begin = self._stream.tell()
        self._stream.write(header(name, size))
        digest = hashlib.sha256()
        rest = size
        while rest and (piece := content.read(min(rest, PIECE))):
            digest.update(piece)
            self._stream.write(piece)
            rest -= len(piece)
        if rest or sha256 not in (None, digest.hexdigest()):
            self._stream.seek(begin)
            self._stream.truncate()
            raise Damaged(name)
        self._stream.write(padding(size))
        member = Member(name, size, digest.hexdigest(), path, mtime_ns)
        self._last = place_after(name, self._last)
        member.check_path()
        self._lines.write(member.to_line())
        self.members += 1
        self.files += member.section != "tables"

    def close(self, manifest: str) -> None:
        """Write the manifest, whose first line is given, and the end of the tar."""
        first = manifest.encode() + b"\n"
        size = len(first) + self._lines.tell()
        self._stream.write(header(MANIFEST, size) + first)
        self._lines.seek(0)
        for piece in _pieces(self._lines, size - len(first)):
            self._stream.write(piece)
        self._stream.write(padding(size) + END)


class Archive:
    """A verified backup file. Make one with `open_archive`."""

    def __init__(self, stream: BinaryIO, shown: str, index: IO[bytes], manifest: bytes) -> None:
        self._stream = stream
        self._shown = shown
        self._index = index
        self.manifest = manifest
        """First line of the manifest."""

    def members(self, sections: tuple[str, ...]) -> Iterator[Member]:
        """Iterate over the members of some sections, in the order of the archive, to be read one after the other."""
        self._index.seek(0)
        offset = 0
        for line in self._index:
            member = Member.from_line(line)
            begin, offset = offset + BLOCK, offset + BLOCK + padded(member.size)
            if member.section in sections:
                self._stream.seek(begin)
                yield member

    def copy(self, member: Member, write: Callable[[bytes], object]) -> None:
        """Give the content of the member that `members` has just returned to `write`, in pieces.

        Raises:
            BackupUnusable: the file was changed since it was verified.
        """
        digest = hashlib.sha256()
        try:
            for piece in _pieces(self._stream, member.size):
                digest.update(piece)
                write(piece)
        except _Refused as error:
            raise self.unusable(str(error)) from None
        if digest.hexdigest() != member.sha256:
            raise BackupUnusable(f"{self._shown} was changed while it was read; restore from an unchanged file")

    def read(self, member: Member) -> bytes:
        """Return the content of a member, see `copy`."""
        content = BytesIO()
        self.copy(member, content.write)
        return content.getvalue()

    def unusable(self, problem: str) -> BackupUnusable:
        """Return the error to raise for a file that is no whole backup."""
        return _unusable(self._shown, problem)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a backup file and check all of it: names, sizes and digests of all members.

    Raises:
        InvalidRequest: there is no such file, or it cannot be read.
        BackupUnusable: it is no backup, or not a whole one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"{path}: {os_reason(error)}; name a file that `evalsvc backup` has written") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidRequest(f"{path} is no regular file; name a file that `evalsvc backup` has written")
    with os.fdopen(descriptor, "rb") as stream, tempfile.TemporaryFile() as seen, tempfile.TemporaryFile() as index:
        try:
            manifest_size = _walk(stream, status.st_size, seen)
            manifest = _match(stream, manifest_size, seen, index)
        except _Refused as error:
            raise _unusable(str(path), str(error)) from None
        yield Archive(stream, str(path), index, manifest)


class _Refused(Exception):
    """What is wrong with an archive, in words."""


def _unusable(shown: str, problem: str) -> BackupUnusable:
    return BackupUnusable(f"{shown} is not a whole backup: {problem}; nothing was restored; use another backup")


def _walk(stream: BinaryIO, file_size: int, seen: IO[bytes]) -> int:
    """Read the archive up to its manifest, and write a line per member to `seen`. Returns the manifest's size."""
    last: Place | None = None
    while True:
        name, size = _read_header(stream)
        if stream.tell() + padded(size) + len(END) > file_size:
            raise _Refused(f"it ends in the middle of {name!r}, which has {size:,} bytes")
        if name == MANIFEST:
            if stream.tell() + padded(size) + len(END) != file_size:
                raise _Refused("more follows its manifest")
            return size
        try:
            last = place_after(name, last)
        except ValueError as error:
            raise _Refused(str(error)) from None
        digest = hashlib.sha256()
        for piece in _pieces(stream, size):
            digest.update(piece)
        _require_zeros(stream, padding(size), name)
        seen.write(json.dumps([name, size, digest.hexdigest()]).encode() + b"\n")


def _match(stream: BinaryIO, size: int, seen: IO[bytes], index: IO[bytes]) -> bytes:
    """Compare the manifest with the members that were seen, and write its lines to `index`. Returns its first line."""
    seen.seek(0)
    rest = size

    def line() -> bytes:
        nonlocal rest
        found = stream.readline(min(MAX_LINE, rest))
        rest -= len(found)
        if not found.endswith(b"\n"):
            raise _Refused("its manifest has a line that is cut off or too long")
        return found

    first = line()
    for expected in seen:
        name, *rest_of_member = json.loads(expected)
        listed = line() if rest else b"[]"
        try:
            member = Member.from_line(listed)
        except (ValueError, RecursionError) as error:
            raise _Refused(f"its manifest does not list {name!r} as it should: {error}") from None
        if [member.name, member.size, member.sha256] != [name, *rest_of_member]:
            raise _Refused(f"{name!r} has another size or SHA-256 than the manifest says, or is not in the manifest")
        index.write(listed)
    if rest:
        raise _Refused("its manifest lists members that are not there")
    _require_zeros(stream, padding(size) + END, MANIFEST)
    return first


def _read_header(stream: BinaryIO) -> tuple[str, int]:
    """Read the header of a member: its name and size."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK or block == bytes(BLOCK):
        raise _Refused("it ends before its manifest")
    try:
        found = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise _Refused("a header in it is none of a tar file") from None
    if found.type != tarfile.REGTYPE or found.linkname:
        raise _Refused(f"{found.name!r} is no regular file")
    if found.name != MANIFEST and section_of(found.name) is None:
        raise _Refused(f"a backup has no member with the name {found.name!r}")
    if found.size < 0 or block != header(found.name, found.size):
        raise _Refused(f"the header of {found.name!r} is none that `evalsvc backup` writes")
    return found.name, found.size


def _require_zeros(stream: BinaryIO, zeros: bytes, name: str) -> None:
    if stream.read(len(zeros)) != zeros:
        raise _Refused(f"something hides behind {name!r}")


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield `size` bytes of a stream, in pieces.

    Raises:
        _Refused: it ends before that.
    """
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise _Refused("it became shorter while it was read")
        size -= len(piece)
        yield piece
