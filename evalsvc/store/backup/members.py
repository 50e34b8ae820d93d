"""Members of a backup's archive: their names, their order, and their lines in the manifest."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass

from evalsvc.spec.names import NAME

MANIFEST = "manifest.jsonl"

SECTIONS = {
    "tables": re.compile(r"tables/[0-9]{2}-[a-z0-9_]{1,63}/[0-9]{6}\.jsonl"),
    "artifacts": re.compile(r"artifacts/[0-9a-f]{64}"),
    "items": re.compile(r"items/[0-9a-f]{64}"),
    "outputs": re.compile(r"outputs/[0-9]{1,18}/[0-9]{1,18}-[0-9]{1,18}"),
    "spool": re.compile(r"spool/[0-9]{1,18}/[0-9]{6}"),
    "statistics": re.compile(r"statistics/[0-9]{9}"),
}
"""Patterns of the names of members by section, in the order of the archive. The names of `spool` and `statistics` are
numbers, and the manifest has the paths, which may be too long for a tar header."""

STATISTICS_PATH = re.compile(rf"{NAME.pattern}\.npz|answers/[0-9a-f]{{64}}/[0-9a-f]{{64}}\.json")

BLOCK = 512
"""Bytes in a block of a tar file."""

_ORDER = list(SECTIONS)

Place = tuple[int, list[str]]
"""The sort key of a member in the order of the archive."""


@dataclass(frozen=True)
class Member:
    """A file of the archive."""

    name: str
    size: int
    sha256: str
    path: str | None = None
    """The path within the section's folder, for a member of `spool` or `statistics`."""
    mtime_ns: int | None = None
    """The modification time that the restored file gets; None for the time of the restore."""

    @property
    def section(self) -> str:
        return self.name.partition("/")[0]

    def to_line(self) -> bytes:
        """Return the line of the manifest, without `path` and `mtime_ns` where both are None."""
        extra = [] if self.path is None else [self.path, self.mtime_ns]
        return json.dumps([self.name, self.size, self.sha256, *extra]).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Member:
        """Read a line of the manifest.

        Raises:
            ValueError: the line has wrong fields, or a path that is not allowed.
        """
        fields = json.loads(line)
        if not isinstance(fields, list) or len(fields) not in (3, 5):
            raise ValueError("not [name, size, sha256] or [name, size, sha256, path, mtime_ns]")
        name, size, sha256, path, mtime_ns = fields if len(fields) == 5 else (*fields, None, None)
        if type(name) is not str or type(size) is not int or type(sha256) is not str:
            raise ValueError("a field has another type")
        member = cls(name, size, sha256, path, mtime_ns)
        member.check_path()
        return member

    def check_path(self) -> None:
        """Raise ValueError for a missing or unexpected path, and for a path outside of the section's folder."""
        if (self.section in ("spool", "statistics")) != (self.path is not None):
            raise ValueError("a path is missing or not allowed")
        if self.path is None:
            return
        if type(self.path) is not str or type(self.mtime_ns) is not int or not 0 <= self.mtime_ns < 1 << 63:
            raise ValueError("path or mtime_ns has another type")
        parts = self.path.split("/")
        is_safe = len(self.path) <= 4096 and len(parts) <= 16 and not {"", ".", ".."} & set(parts)
        if not is_safe or "\0" in self.path:
            raise ValueError("the path leads out of its folder")
        if self.section == "statistics" and not STATISTICS_PATH.fullmatch(self.path):
            raise ValueError("the path is no name of a statistics file")


def header(name: str, size: int) -> bytes:
    """Return the tar header of a member, which depends on name and size only."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def section_of(name: str) -> str | None:
    """Return the section of a member; None for a name that no member may have."""
    section = name.partition("/")[0]
    return section if section in SECTIONS and SECTIONS[section].fullmatch(name) else None


def place_after(name: str, last: Place | None) -> Place:
    """Return the place of the member `name`, which must come after `last`.

    Raises:
        ValueError: no member may have this name, or the name is repeated or out of order.
    """
    section = section_of(name)
    if section is None:
        raise ValueError(f"a backup has no member with the name {name!r}")
    place = (_ORDER.index(section), name.split("/"))
    if last is not None and place <= last:
        raise ValueError(f"{name!r} is repeated or out of order")
    return place


def padded(size: int) -> int:
    """Return the bytes that content of this size takes in the archive: whole blocks."""
    return -(-size // BLOCK) * BLOCK


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of content of this size."""
    return bytes(padded(size) - size)
