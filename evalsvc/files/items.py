"""Results per item, by column: compact in a row or a file, exact, and readable by column.

A task records a JSON object per item, and many thousands of objects have the same few keys. A column holds the values
of one key, as MessagePack, compressed; a *shape* is the keys of an object in their order. An object is its shape and
the next value of each of its columns, so that missing keys take no space.

Small tables are in the task's row. A large table is a file named by the digest of its content. The file is complete
before the transaction that names it; files that no row names are orphans and are removed when the service starts.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from evalsvc.errors import ItemsLost
from evalsvc.files.artifacts import drop_orphans, keep_content, read_content
from evalsvc.files.atomic import FileLost

LARGE = 64 * 1024
"""Number of bytes from which the items of a task are a file."""

FORMAT = "evalsvc-items/1"

Item = Mapping[str, object]

Shape = tuple[str, ...]


class ItemTable:
    """Results per item of one task. Each column is decoded once, at its first use."""

    def __init__(
        self, shapes: Sequence[Shape], shape_of: Sequence[int], columns: Mapping[str, bytes | list[Any]]
    ) -> None:
        self._shapes = shapes
        self._shape_of = shape_of
        self._columns = dict(columns)

    @classmethod
    def of(cls, items: Iterable[Item]) -> ItemTable:
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
        document = msgpack.unpackb(content)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"not results per item in the form {FORMAT}")
        return cls([tuple(shape) for shape in document["shapes"]], _unpack(document["shape_of"]), document["columns"])

    def to_bytes(self) -> bytes:
        """Return the table, compressed by column."""
        columns = {name: own if isinstance(own, bytes) else _pack(own) for name, own in self._columns.items()}
        shapes = {"shapes": self._shapes, "shape_of": _pack(self._shape_of)}
        packed: bytes = msgpack.packb({"format": FORMAT, **shapes, "columns": columns})
        return packed

    def __len__(self) -> int:
        return len(self._shape_of)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in the order of their first appearance."""
        return list(self._columns)

    def column(self, name: str) -> list[Any]:
        """Return a value for each item, [n], None where the key is missing. The list must not be changed."""
        values = self._values(name)
        has = [name in shape for shape in self._shapes]
        if all(has):
            return values
        present = iter(values)
        return [next(present) if has[shape] else None for shape in self._shape_of]

    def where(self, name: str, value: object) -> ItemTable:
        pairs = zip(self.rows(), self.column(name), strict=True)
        return ItemTable.of(row for row, actual in pairs if actual == value)

    def rows(self, names: Collection[str] | None = None) -> Iterator[dict[str, object]]:
        """Yield the objects that the table was made of, or only these of their keys."""
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
    return ItemTable.of(items).to_bytes()


def keep_items(folder: Path, content: bytes) -> bytes | str:
    """Return the content of the row: the packed items, or the SHA-256 of the file that holds them."""
    return content if len(content) < LARGE else keep_content(folder, content, "results per item")


def read_items(folder: Path, kept: bytes | str, task: str) -> ItemTable:
    """Read the items that a row holds or names by a digest; messages name `task`."""
    if isinstance(kept, bytes):
        return ItemTable.from_bytes(kept)
    try:
        return ItemTable.from_bytes(read_content(folder, kept))
    except FileLost as error:
        raise ItemsLost(
            f"the results per item of {task} are lost: {error}; put the file back from a backup of the data folder, or "
            "evaluate the checkpoint again (POST /v1/evaluations). The metrics are in the database and stay"
        ) from None


def sweep_items(folder: Path, named: Collection[str]) -> int:
    """Remove files that no row names; return their number. If none is named, the database may be new: all stay."""
    return drop_orphans(folder, named) if named else 0


def _pack(values: Sequence[Any]) -> bytes:
    return zlib.compress(msgpack.packb(values))


def _unpack(content: bytes) -> list[Any]:
    values: list[Any] = msgpack.unpackb(zlib.decompress(content))
    return values
