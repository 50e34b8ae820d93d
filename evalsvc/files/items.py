"""Results per item, by column: compact in a row or a file, exact, and read a column at a time.

A task finds a JSON object for each of its items, and many thousand of them have the same few keys. A column holds the
values of one key, as MessagePack, compressed; a *shape* is the keys of an object in their order. An object is its shape
and the next value of each of its columns, so that keys may be missing and nothing stands for them.

What is small stays in the task's row. What is large is a file under the digest of its content, which is there, whole,
before the transaction that names it; what no row names is an orphan and is swept when the service starts.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from evalsvc.errors import ItemsLost, os_reason
from evalsvc.files.artifacts import DamagedContent, artifact_path, drop_orphans, keep_content, read_content

LARGE = 64 * 1024
"""Bytes from which the items of a task are a file."""

FORMAT = "evalsvc-items/1"

Item = Mapping[str, object]

Shape = tuple[str, ...]


class ItemTable:
    """The results per item of one task. Columns are decoded when they are asked for, each of them once."""

    def __init__(
        self, shapes: Sequence[Shape], shape_of: Sequence[int], columns: Mapping[str, bytes | list[Any]]
    ) -> None:
        """Use `of` or `from_bytes`: `shape_of` has the number of each item's shape, a column the values of the items
        that have it."""
        self._shapes = shapes
        self._shape_of = shape_of
        self._columns = dict(columns)

    @classmethod
    def of(cls, items: Iterable[Item]) -> ItemTable:
        """The table of JSON objects."""
        numbers: dict[Shape, int] = {}
        shape_of: list[int] = []
        columns: dict[str, list[Any]] = {}
        for item in items:
            shape_of.append(numbers.setdefault(tuple(item), len(numbers)))
            for key, value in item.items():
                columns.setdefault(key, []).append(value)
        return cls(list(numbers), shape_of, columns)

    @classmethod
    def from_bytes(cls, content: bytes) -> ItemTable:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        document = msgpack.unpackb(content)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"not results per item in the form {FORMAT}")
        return cls([tuple(shape) for shape in document["shapes"]], _unpack(document["shape_of"]), document["columns"])

    def to_bytes(self) -> bytes:
        """The table, compressed by column.

        Raises:
            TypeError, ValueError, OverflowError: a value is not JSON-able, or an integer has more than 64 bits.
        """
        packed: bytes = msgpack.packb(
            {
                "format": FORMAT,
                "shapes": self._shapes,
                "shape_of": _pack(self._shape_of),
                "columns": {
                    name: values if isinstance(values, bytes) else _pack(values)
                    for name, values in self._columns.items()
                },
            }
        )
        return packed

    def __len__(self) -> int:
        return len(self._shape_of)

    @property
    def names(self) -> list[str]:
        """Of the columns, in the order of their first appearance."""
        return list(self._columns)

    def column(self, name: str) -> list[Any]:
        """A value for each item, [n]: None where it lacks the key. Not to be changed."""
        values = self._values(name)
        has = [name in shape for shape in self._shapes]
        if all(has):
            return values
        rest = iter(values)
        return [next(rest) if has[shape] else None for shape in self._shape_of]

    def where(self, name: str, value: object) -> ItemTable:
        """The items whose `name` is `value`."""
        pairs = zip(self.rows(), self.column(name), strict=True)
        return ItemTable.of(row for row, found in pairs if found == value)

    def rows(self, names: Collection[str] | None = None) -> Iterator[dict[str, object]]:
        """The objects, equal to those that the table was made of, or only these of their keys."""
        shapes = [[key for key in shape if names is None or key in names] for shape in self._shapes]
        columns = {key: iter(self._values(key)) for shape in shapes for key in shape}
        for shape in self._shape_of:
            yield {key: next(columns[key]) for key in shapes[shape]}

    def _values(self, name: str) -> list[Any]:
        values = self._columns.get(name, [])
        if isinstance(values, bytes):
            values = self._columns[name] = _unpack(values)
        return values


def pack_items(items: Iterable[Item]) -> bytes:
    """JSON objects as `read_items` takes them; see `ItemTable.to_bytes`."""
    return ItemTable.of(items).to_bytes()


def keep_items(folder: Path, content: bytes) -> bytes | str:
    """What the row is to hold: the packed items, or the SHA-256 of the file that they were written to.

    Raises:
        ArtifactNotWritten: no space, no permission.
    """
    return content if len(content) < LARGE else keep_content(folder, content, "results per item")


def read_items(folder: Path, kept: bytes | str, task: str) -> ItemTable:
    """The items that a row holds, or names by a digest; `task` is for the message.

    Raises:
        ItemsLost: the file is gone or is not what was written.
    """
    return ItemTable.from_bytes(kept if isinstance(kept, bytes) else _read_file(folder, kept, task))


def sweep_items(folder: Path, named: Collection[str]) -> int:
    """Remove every file whose digest no row names. Returns how many.

    A database that names none is left alone: it is more likely a new one beside the files of another than that a
    service was killed over its first.
    """
    return drop_orphans(folder, named) if named else 0


def _read_file(folder: Path, sha256: str, task: str) -> bytes:
    try:
        return read_content(folder, sha256)
    except DamagedContent as error:
        problem = f"is damaged: {os_reason(error)}"
    except OSError as error:
        problem = f"cannot be read: {os_reason(error)}"
    path = artifact_path(folder, sha256)
    raise ItemsLost(
        f"the results per item of {task} are lost: {path} {problem}; put the file back from a backup of the data "
        "folder, or evaluate the checkpoint again (POST /v1/evaluations). The metrics are in the database and stay"
    )


def _pack(values: Sequence[Any]) -> bytes:
    return zlib.compress(msgpack.packb(values))


def _unpack(content: bytes) -> list[Any]:
    values: list[Any] = msgpack.unpackb(zlib.decompress(content))
    return values
