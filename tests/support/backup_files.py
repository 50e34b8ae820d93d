"""Backups that were changed by hand: the members of a good one, to be written again with something else among them."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.jsonl"


@dataclass
class Entry:
    """A member of a tar, as it will be written."""

    name: str
    content: bytes
    extra: list[Any] = field(default_factory=list)
    """Path and time of change, where the manifest has them."""
    info: dict[str, Any] = field(default_factory=dict)
    """Attributes of the header that differ from a regular file's."""
    listed: bool = True
    """Whether the manifest has the member."""


@dataclass
class Parts:
    """What a backup consists of."""

    manifest: dict[str, Any]
    entries: list[Entry]

    def of(self, section: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.name.startswith(section)]

    def table(self, name: str) -> dict[str, Any]:
        [found] = [table for table in self.manifest["tables"] if table["name"] == name]
        return found

    def rows(self, name: str) -> Entry:
        """The first member with rows of a table."""
        return next(entry for entry in self.of("tables/") if f"-{name}/" in entry.name)

    def set_value(self, table: str, column: str, value: Any) -> None:
        """Change a value of the first row of a table."""
        entry = self.rows(table)
        first, *rest = entry.content.splitlines(keepends=True)
        row = json.loads(first)
        row[list(self.table(table)["columns"]).index(column)] = value
        entry.content = b"".join([json.dumps(row).encode() + b"\n", *rest])

    def insert_after(self, place: Entry, entry: Entry) -> None:
        self.entries.insert(self.entries.index(place) + 1, entry)


def read_parts(path: Path) -> Parts:
    """Take a good backup apart."""
    with tarfile.open(path) as archive:
        contents = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    first, *lines = contents.pop(MANIFEST).splitlines()
    listed = [json.loads(line) for line in lines]
    return Parts(json.loads(first), [Entry(name, contents[name], extra) for name, _, _, *extra in listed])


def write_parts(path: Path, parts: Parts) -> Path:
    """Write a backup of these parts, with a manifest that has their sizes and digests."""
    parts.manifest["members"] = len(parts.entries)
    lines = [json.dumps(parts.manifest)]
    for entry in parts.entries:
        if entry.listed:
            digest = hashlib.sha256(entry.content).hexdigest()
            lines.append(json.dumps([entry.name, len(entry.content), digest, *entry.extra]))
    manifest = Entry(MANIFEST, ("\n".join(lines) + "\n").encode())
    with path.open("wb") as stream:
        for entry in [*parts.entries, manifest]:
            stream.write(_header(entry) + entry.content + bytes(-len(entry.content) % 512))
        stream.write(bytes(1024))
    return path


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.name)
    info.size, info.mode = len(entry.content), 0o600
    for name, value in entry.info.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Write any tar, with Python's own headers for long names and for what POSIX adds."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
