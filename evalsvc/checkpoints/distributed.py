"""Folders of torch.distributed.checkpoint, read in place: the tensors that `.metadata` lists, and their bytes.

`.metadata` is a pickle, and a `.distcp` file is a row of archives of torch.save, each with a piece of a tensor and a
pickle of its own. No class or function in them is imported or called, and torch is not needed.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from evalsvc.checkpoints.formats import DISTRIBUTED, METADATA, conversion, legible
from evalsvc.checkpoints.torch_file import NEWER, InertUnpickler, Made
from evalsvc.errors import CheckpointError, NotACheckpoint, ShardedCheckpoint, UnsafeCheckpoint

MAX_METADATA = 24_000_000
"""Maximum number of bytes of `.metadata`."""

MAX_VALUES = 800_000
"""Maximum number of objects of a pickle, enough for 40,000 pieces of tensors."""

MAX_PIECES = 100_000

MAX_OVERHEAD = 1 << 20
"""Maximum number of bytes of a piece's archive besides its values; torch writes less than 3,000."""

MAX_DIMS = 16

NAMES = re.compile(
    r"torch\.distributed\.(checkpoint|_shard)\.[\w.]+|[\w.]+\._StorageInfo|torch\.serialization\._get_layout"
    r"|torch\.(Size|(storage\.)?\w+Storage|bool|u?int\d+|b?float\d+\w*|complex\d+)|torch\._utils\._rebuild_tensor_v2"
    r"|collections\.OrderedDict|pathlib\.[\w.]*Path|builtins\.getattr"  # of enums of Python 3.11.0
)
"""Names that `.metadata` and pickles of pieces may hold. OLMo-core and others have a `_StorageInfo` of their own."""

STORAGES = {
    name: (storage, size)
    for size, names in {
        8: {"float64": "Double", "int64": "Long", "complex64": "ComplexFloat"},
        4: {"float32": "Float", "int32": "Int"},
        2: {"float16": "Half", "bfloat16": "BFloat16", "int16": "Short"},
        1: {"int8": "Char", "uint8": "Byte", "bool": "Bool"},
    }.items()
    for name, storage in names.items()
}
"""Name in torch's classes of storages, and number of bytes of a value, by dtype."""

OPTIMIZER = re.compile(r"optim.*", re.DOTALL)
MOMENTS = (".exp_avg", ".exp_avg_sq", ".max_exp_avg_sq", ".momentum_buffer")


@dataclass(frozen=True)
class Piece:
    """An archive with a rectangular part of a tensor, of which `start` is the first index."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class InPieces:
    """A tensor of which the pieces are a partition."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def read_models(folder: Path) -> dict[str, dict[str, InPieces]]:
    """Return the tensors of each model in a folder by name, by the keys under which the models were saved ["" at the
    top]. States of optimizers are left out. Every piece is checked against the others and against its file.
    """
    state = _read_metadata(folder / METADATA)
    try:
        keys = _model_keys(folder, state)
        entries = _entries(folder, state, [key for names in keys.values() for key in names.values()])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(folder / METADATA) from error
    _require_bytes(folder, entries)
    return {model: {name: entries[key] for name, key in names.items()} for model, names in keys.items()}


def _read_metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MAX_METADATA + 1)
    if len(content) > MAX_METADATA:
        raise _too_large(str(path))
    try:
        made = interpret(content, str(path))
    except UnsafeCheckpoint:
        raise
    except OverflowError as error:
        raise _too_large(str(path)) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged(path) from error
    if type(made) is not Made or not made.name.endswith(".Metadata") or type(made.state) is not dict:
        raise _damaged(path)
    return made.state


def interpret(content: bytes, shown: str) -> Any:
    if content[:1] != b"\x80":
        raise ValueError("the file is no pickle")
    return InertUnpickler(io.BytesIO(content), shown, NAMES, NEWER, MAX_VALUES).load()


def _model_keys(folder: Path, state: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the keys of each model's tensors by name. The path of a key says which dictionary the tensor was in."""
    paths = state.get("planner_data") or {}
    entries = {key: made.state for key, made in state["state_dict_metadata"].items()}
    tensors = {key: entry for key, entry in entries.items() if type(entry) is dict and "chunks" in entry}
    groups = defaultdict[str, dict[str, str]](dict)
    matrices = set[str]()
    for key, entry in tensors.items():
        path = paths.get(key)
        if type(path) is not tuple or not _spells(path, key):
            path = (key,)
        group = ".".join(part for part in path[:-1] if type(part) is str)
        name = str(path[-1])
        if any(OPTIMIZER.fullmatch(part) for part in (*group.split("."), name)) or key.endswith(MOMENTS):
            continue
        if name in groups[group]:
            raise NotACheckpoint(
                f"{folder} holds {legible(name)} twice under {legible(group)!r}; save the model in a folder of its own"
            )
        groups[group][name] = key
        if len(_sizes(entry["size"])) > 1:
            matrices.add(group)
    return {group: names for group, names in groups.items() if group in matrices}


def _spells(path: tuple[Any, ...], key: str) -> bool:
    # Lengths first: one long text may be in the paths of many keys.
    texts = [str(part) for part in path if type(part) in (str, int)] if len(path) < len(key) else []
    return sum(map(len, texts)) + len(path) - 1 == len(key) and ".".join(texts) == key


def _entries(folder: Path, state: Mapping[str, Any], keys: Iterable[str]) -> dict[str, InPieces]:
    wanted = dict.fromkeys(keys)
    stored = {
        (index.state["fqn"], _sizes(index.state["offset"])): info.state
        for index, info in state["storage_data"].items()
        if index.state["fqn"] in wanted and index.state.get("offset") is not None
    }
    entries = {}
    count = 0
    for key in wanted:
        entry = state["state_dict_metadata"][key].state
        properties = entry["properties"].state
        dtype = (properties["dtype"] if type(properties) is dict else properties[0]).name.removeprefix("torch.")
        shape = _sizes(entry["size"])
        if dtype not in STORAGES:
            raise NotACheckpoint(
                f"{folder} holds {legible(key)} as {dtype}, which is not read; save it as a float type"
            )
        pieces = []
        count += len(entry["chunks"])
        if count > MAX_PIECES:  # one list of pieces may be that of many tensors
            raise _too_large(str(folder / METADATA))
        for chunk in entry["chunks"]:
            start, sizes = _sizes(chunk.state["offsets"]), _sizes(chunk.state["sizes"])
            if 0 in sizes and 0 not in shape:
                continue  # the share of a rank that has none
            info = stored.get((key, start))
            if info is None:
                raise _incomplete(folder, key)
            if info.get("transform_descriptors"):
                raise ShardedCheckpoint(f"{folder} is compressed, which evalsvc does not read; {conversion(folder)}")
            file = info["relative_path"]
            if type(file) is not str or Path(file).name != file or not file.endswith(DISTRIBUTED) or "\0" in file:
                raise NotACheckpoint(
                    f"{folder / METADATA} names {legible(file) if type(file) is str else 'something'}, which is no "
                    f"{DISTRIBUTED} file in the same folder; write it again"
                )
            pieces.append(Piece(start, sizes, file, int(info["offset"]), int(info["length"])))
        if not _is_partition(shape, pieces):
            raise _incomplete(folder, key)
        entries[key] = InPieces(dtype, shape, tuple(pieces))
    return entries


def _is_partition(shape: tuple[int, ...], pieces: Sequence[Piece]) -> bool:
    """Return whether the pieces are the cells of a grid over the whole tensor, as every sharding by ranks is."""
    if any(not len(piece.start) == len(piece.shape) == len(shape) for piece in pieces):
        return False
    edges = [[*sorted({piece.start[dim] for piece in pieces}), size] for dim, size in enumerate(shape)]
    if prod(len(edge) - 1 for edge in edges) != len(pieces) or any(edge[0] for edge in edges):
        return False
    ends = [dict(pairwise(edge)) for edge in edges]
    cells = {piece.start: piece.shape for piece in pieces}
    return len(cells) == len(pieces) and all(
        all(end.get(begin) == begin + size for end, begin, size in zip(ends, start, sizes, strict=True))
        for start, sizes in cells.items()
    )


def _require_bytes(folder: Path, entries: Mapping[str, InPieces]) -> None:
    """Raise NotACheckpoint unless the pieces lie side by side inside their files, each as long as its values."""
    by_file = defaultdict[str, list[tuple[int, int, str]]](list)
    for key, entry in entries.items():
        for piece in entry.pieces:
            overhead = piece.length - prod(piece.shape) * STORAGES[entry.dtype][1]
            if not 0 <= overhead <= MAX_OVERHEAD:
                raise _damaged(folder / METADATA)
            by_file[piece.file].append((piece.offset, piece.offset + piece.length, key))
    for file, ranges in by_file.items():
        if not (path := folder / file).is_file():
            raise NotACheckpoint(f"{folder} lacks {legible(file)}, which .metadata names; copy all files of the folder")
        size = path.stat().st_size
        ranges.sort()
        if ranges[-1][1] > size:
            raise NotACheckpoint(
                f"{path} is cut off: {legible(ranges[-1][2])} ends at byte {ranges[-1][1]:,}, the file at "
                f"{size:,}; copy it again"
            )
        if ranges[0][0] < 0 or any(left[1] > right[0] for left, right in pairwise(ranges)):
            raise _damaged(folder / METADATA)


class Section:
    """Bytes of a file, as a file of its own for zipfile, which would read whatever an archive claims to hold."""

    def __init__(self, file: BinaryIO, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        size = left if size < 0 else min(size, left)
        if size > MAX_OVERHEAD:
            raise ValueError("a record that is no value is too long")
        self._file.seek(self._begin + self._at)
        content = self._file.read(size)
        self._at += len(content)
        return content


def find_values(folder: Path, entry: InPieces, piece: Piece) -> tuple[int, tuple[int, ...]]:
    """Return the first byte of a piece's values in its file, and the distance of neighbours along each dimension, both
    from the pickle in the archive, which must agree with `.metadata`."""
    shown = f"{folder / piece.file} at byte {piece.offset:,}"
    try:
        with (folder / piece.file).open("rb") as file:
            section = Section(file, piece.offset, piece.length)
            archive = zipfile.ZipFile(section)
            records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
            record = records["data.pkl"]
            record.CRC = None  # type: ignore[assignment] # torch may have written no checksum
            if any(item.compress_type != zipfile.ZIP_STORED for item in records.values()):
                raise ValueError("a record is compressed")
            if (order := records.get("byteorder")) is not None and archive.read(order) != b"little":
                raise ValueError("the values are in another order of bytes")
            made = interpret(archive.read(record), shown)
            stored, offset, shape, stride = made.arguments[:4]
            _, kind, key, _, count = stored.arguments
            values = records[f"data/{key}"]
            section.seek(values.header_offset)
            header = section.read(30)
            begin = values.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        storage, width = STORAGES[entry.dtype]
        if made.name != "torch._utils._rebuild_tensor_v2" or not kind.name.endswith(f".{storage}Storage"):
            raise ValueError("the piece is no tensor of the dtype")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if shape != piece.shape or min((offset, *stride)) < 0 or not max(last + 1, prod(shape)) <= count:
            raise ValueError("the piece has another shape")
        if any(type(number) is not int for number in (count, offset, *shape, *stride)):
            raise ValueError("a size is no number")
        if not 0 <= begin <= piece.length - count * width or count * width != values.file_size:
            raise ValueError("the values end outside")
    except CheckpointError:
        raise
    except Exception as error:  # a hostile archive fails in any way
        raise NotACheckpoint(f"{shown} is not what .metadata says; copy or write the folder again") from error
    return piece.offset + begin + offset * width, stride


def _sizes(made: Made) -> tuple[int, ...]:
    sizes = made.arguments[0]
    if made.name != "torch.Size" or len(sizes) > MAX_DIMS or any(type(n) is not int or n >> 48 for n in sizes):
        raise ValueError("a size is no tuple of numbers")
    return tuple(sizes)


def _incomplete(folder: Path, key: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{folder / METADATA} lists pieces of {legible(key)} that overlap, leave gaps or lie outside; write it again"
    )


def _damaged(path: Path) -> NotACheckpoint:
    return NotACheckpoint(f"{path} is damaged or not by torch.distributed.checkpoint; copy or write the folder again")


def _too_large(shown: str) -> ShardedCheckpoint:
    advice = f"save the model without its optimizer, or {conversion(Path(shown).parent)}"
    return ShardedCheckpoint(f"{shown} lists more pieces than are read in place; {advice}")
