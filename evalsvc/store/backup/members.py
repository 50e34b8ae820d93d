"""Members of a backup's archive: which names there are, in which order, and what the manifest says of each."""

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
"""Names of members by section, in the order of the archive. Those of `spool` and `statistics` are numbers: the manifest
has their paths, which are longer than a tar's header takes."""

STATISTICS_PATH = re.compile(rf"{NAME.pattern}\.npz|answers/[0-9a-f]{{64}}/[0-9a-f]{{64}}\.json")

BLOCK = 512
"""Bytes of a tar's block."""

_ORDER = list(SECTIONS)

Place = tuple[int, list[str]]
"""Place of a member in the order of the archive."""


@dataclass(frozen=True)
class Member:
    """A file of the archive."""

    name: str
    size: int
    sha256: str
    path: str | None = None
    """Path within its section's folder, of members whose name is a number."""
    mtime_ns: int | None = None
    """Time of change that the restored file gets; None: its own."""

    @property
    def section(self) -> str:
        return self.name.partition("/")[0]

    def to_line(self) -> bytes:
        """Return the line of the manifest, without `path` and `mtime_ns` where there are none."""
        extra = [] if self.path is None else [self.path, self.mtime_ns]
        return json.dumps([self.name, self.size, self.sha256, *extra]).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Member:
        """Read a line of the manifest.

        Raises:
            ValueError: the line describes no member that an archive may have.
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
        """Raise ValueError unless the path is there where it must be, and stays below its section's folder."""
        if (self.section in ("spool", "statistics")) != (self.path is not None):
            raise ValueError("a path is missing, or is there and must not be")
        if self.path is None:
            return
        if type(self.path) is not str or type(self.mtime_ns) is not int or not 0 <= self.mtime_ns < 1 << 63:
            raise ValueError("path or mtime_ns has another type")
        parts = self.path.split("/")
        is_safe = len(self.path) <= 4096 and len(parts) <= 16 and not {"", ".", ".."} & set(parts)
        if not is_safe or "\0" in self.path:
            raise ValueError("the path leads out of its folder")
        if self.section == "statistics" and not STATISTICS_PATH.fullmatch(self.path):
            raise ValueError("there is no such file of statistics")


def header(name: str, size: int) -> bytes:
    """Return the header of a member, which depends on nothing but name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def section_of(name: str) -> str | None:
    """Return the section that a member is in; None: no member has this name."""
    section = name.partition("/")[0]
    return section if section in SECTIONS and SECTIONS[section].fullmatch(name) else None


def place_after(name: str, last: Place | None) -> Place:
    """Return the place of a member, which must come after the last one's.

    Raises:
        ValueError: no member has this name, or it is there twice or out of order.
    """
    section = section_of(name)
    if section is None:
        raise ValueError(f"a backup has no member with the name {name!r}")
    place = (_ORDER.index(section), name.split("/"))
    if last is not None and place <= last:
        raise ValueError(f"{name!r} is there twice, or out of order")
    return place


def padded(size: int) -> int:
    """Return how many bytes content of a size takes in the archive."""
    return -(-size // BLOCK) * BLOCK


def padding(size: int) -> bytes:
    """Return the zeros behind content of a size."""
    return bytes(padded(size) - size)
