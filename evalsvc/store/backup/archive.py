"""The archive of a backup: a plain tar of regular files, with a manifest at its end.

`tar -tf` lists a backup, but `open_archive` only accepts what `ArchiveWriter` writes. Every header must equal, byte for
byte, the header of a regular file with this name and size, so an archive has no links, devices, folders, sparse files
or extended headers. Names must match an allow-list and strictly ascend, so no name repeats. The manifest has the size
and SHA-256 of every member, and only the 1,024 zeros of a tar's end follow the manifest: a truncated file is refused.
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
"""Bytes in one read or write."""

END = bytes(2 * BLOCK)

MAX_LINE = 1 << 20
"""The most bytes in a line of the manifest."""


class Damaged(Exception):
    """A file does not have the expected size or digest, and was not added to the archive."""


class ArchiveWriter:
    """A writer of members, which must come in the order of the sections and of names."""

    def __init__(self, stream: BinaryIO, lines: IO[bytes]) -> None:
        """Begin an archive in `stream`, a file that can be truncated. Call `close` at the end.

        Args:
            lines: an empty file for the lines of the manifest, of which there may be millions.
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
            sha256: the expected digest; None accepts any content.
            path, mtime_ns: see `Member`.

        Raises:
            Damaged: the content ends early or has another digest; the archive is unchanged.
            OSError: the disk is full.
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
        """Write the manifest with the first line `manifest`, and the end of the tar."""
        first = manifest.encode() + b"\n"
        size = len(first) + self._lines.tell()
        self._stream.write(header(MANIFEST, size) + first)
        self._lines.seek(0)
        for piece in _pieces(self._lines, size - len(first)):
            self._stream.write(piece)
        self._stream.write(padding(size) + END)


class Archive:
    """A verified backup file, from `open_archive`."""

    def __init__(self, stream: BinaryIO, shown: str, index: IO[bytes], manifest: bytes) -> None:
        self._stream = stream
        self._shown = shown
        self._index = index
        self.manifest = manifest
        """The first line of the manifest."""

    def members(self, sections: tuple[str, ...]) -> Iterator[Member]:
        """Yield the members of `sections` in the order of the archive. Read a member before you ask for the next."""
        self._index.seek(0)
        offset = 0
        for line in self._index:
            member = Member.from_line(line)
            begin, offset = offset + BLOCK, offset + BLOCK + padded(member.size)
            if member.section in sections:
                self._stream.seek(begin)
                yield member

    def copy(self, member: Member, write: Callable[[bytes], object]) -> None:
        """Call `write` with pieces of the content of the member that `members` has just yielded.

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
            raise BackupUnusable(f"{self._shown} was changed during the restore; restore from an unchanged file")

    def read(self, member: Member) -> bytes:
        """Return the content of the member that `members` has just yielded; see `copy` for the errors."""
        content = BytesIO()
        self.copy(member, content.write)
        return content.getvalue()

    def unusable(self, problem: str) -> BackupUnusable:
        """Return the BackupUnusable to raise for a file that is not a whole backup."""
        return _unusable(self._shown, problem)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a backup file and check the names, sizes and digests of all members.

    Raises:
        InvalidRequest: the file does not exist or cannot be read.
        BackupUnusable: the file is not a whole backup.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"{path}: {os_reason(error)}; name a file that `evalsvc backup` wrote") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidRequest(f"{path} is no regular file; name a file that `evalsvc backup` wrote")
    with os.fdopen(descriptor, "rb") as stream, tempfile.TemporaryFile() as seen, tempfile.TemporaryFile() as index:
        try:
            manifest_size = _walk(stream, status.st_size, seen)
            manifest = _match(stream, manifest_size, seen, index)
        except _Refused as error:
            raise _unusable(str(path), str(error)) from None
        yield Archive(stream, str(path), index, manifest)


class _Refused(Exception):
    """A problem of an archive, described by the message."""


def _unusable(shown: str, problem: str) -> BackupUnusable:
    return BackupUnusable(f"{shown} is not a whole backup: {problem}; nothing was restored; use another backup")


def _walk(stream: BinaryIO, file_size: int, seen: IO[bytes]) -> int:
    """Read the archive up to its manifest, and write a line per member to `seen`. Return the manifest's size."""
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
    """Compare the manifest with the members in `seen`, and write its lines to `index`. Return the first line."""
    seen.seek(0)
    rest = size

    def line() -> bytes:
        nonlocal rest
        content = stream.readline(min(MAX_LINE, rest))
        rest -= len(content)
        if not content.endswith(b"\n"):
            raise _Refused("its manifest has a line that is cut off or too long")
        return content

    first = line()
    for expected in seen:
        name, *rest_of_member = json.loads(expected)
        listed = line() if rest else b"[]"
        try:
            member = Member.from_line(listed)
        except (ValueError, RecursionError) as error:
            raise _Refused(f"its manifest has an invalid line for {name!r}: {error}") from None
        if [member.name, member.size, member.sha256] != [name, *rest_of_member]:
            raise _Refused(f"{name!r} has another size or SHA-256 than the manifest says, or is not in the manifest")
        index.write(listed)
    if rest:
        raise _Refused("its manifest lists members that are missing")
    _require_zeros(stream, padding(size) + END, MANIFEST)
    return first


def _read_header(stream: BinaryIO) -> tuple[str, int]:
    """Read the header of a member; return its name and size."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK or block == bytes(BLOCK):
        raise _Refused("it ends before its manifest")
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise _Refused("it has an invalid tar header") from None
    if info.type != tarfile.REGTYPE or info.linkname:
        raise _Refused(f"{info.name!r} is no regular file")
    if info.name != MANIFEST and section_of(info.name) is None:
        raise _Refused(f"a backup has no member with the name {info.name!r}")
    if info.size < 0 or block != header(info.name, info.size):
        raise _Refused(f"the header of {info.name!r} differs from the header that `evalsvc backup` writes")
    return info.name, info.size


def _require_zeros(stream: BinaryIO, zeros: bytes, name: str) -> None:
    if stream.read(len(zeros)) != zeros:
        raise _Refused(f"other bytes than zeros follow {name!r}")


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield `size` bytes of a stream, in pieces.

    Raises:
        _Refused: the stream ends early.
    """
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise _Refused("it became shorter while it was read")
        size -= len(piece)
        yield piece
