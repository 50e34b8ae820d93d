"""Backups that were changed by hand: the files of a good one, written again with something else among them."""

import hashlib
import sqlite3
import tarfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

DATABASE = "evalsvc.db"


@dataclass
class Member:
    """A file of a backup, as it will be written."""

    name: str
    content: bytes
    info: dict[str, Any] = field(default_factory=dict)
    """Attributes of the header that differ from a regular file's, such as `type`."""


def read_members(path: Path) -> dict[str, Member]:
    members = {}
    with tarfile.open(path) as tar:
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            members[info.name] = Member(info.name, content.read(), {"pax_headers": info.pax_headers})
    return members


def write_members(path: Path, members: Iterable[Member]) -> Path:
    """Write a backup of these files, with the SHA-256 of the whole at its end."""
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size = len(member.content)
            size = member.info.pop("size", info.size)
            for name, value in member.info.items():
                setattr(info, name, value)
            if size == info.size:
                tar.addfile(info, BytesIO(member.content))
            else:
                info.size = size  # a lie: the header alone, and less content
                stream.write(info.tobuf(tarfile.PAX_FORMAT) + member.content.ljust(512, b"\0"))
    return write_signed(path, stream.getvalue())


def write_signed(path: Path, content: bytes) -> Path:
    """Write any content as if it were a backup: with its SHA-256 at its end."""
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    return path


def changed_database(content: bytes, *statements: str) -> bytes:
    """The database of a backup after these statements, without checks of foreign keys."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content[:18] + b"\1\1" + content[20:])  # a database in memory has no WAL
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        return connection.serialize()
