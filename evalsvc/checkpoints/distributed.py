"""Folders of torch.distributed.checkpoint, read in place: the tensors that `.metadata` lists, and their bytes.

`.metadata` is a pickle, and a `.distcp` file is a row of archives of torch.save, each with a piece of a tensor and a
pickle of its own. A pickle is a program. This reader interprets the few instructions that such files need, and each
class or function that they name becomes an inert `Made`: nothing is imported or called. torch is not needed.
"""

from __future__ import annotations

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
from evalsvc.errors import CheckpointError, NotACheckpoint, ShardedCheckpoint, UnsafeCheckpoint

MAX_METADATA = 24_000_000
"""Maximum number of bytes of `.metadata`."""

MAX_STEPS, MAX_VALUES = 3_000_000, 1_100_000
"""Maximum numbers of instructions and of objects of a pickle, enough for 60,000 pieces of tensors."""

MAX_PIECES = 100_000

MAX_OVERHEAD = 1 << 20
"""Maximum number of bytes of a piece's archive besides its values; torch writes less than 3,000."""

MAX_DIMS = 16

NAMES = re.compile(
    r"torch\.distributed\.(checkpoint|_shard)\.[\w.]+|[\w.]+\._StorageInfo|torch\.serialization\._get_layout"
    r"|torch\.(Size|(storage\.)?\w+Storage|bool|u?int\d+|b?float\d+\w*|complex\d+)|torch\._utils\._rebuild_tensor_v2"
    r"|collections\.OrderedDict|pathlib\.[\w.]*Path|(builtins|__builtin__)\.getattr"  # of enums of Python 3.11.0
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

CONSTANTS = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}
UNMADE = frozenset((*b"hjK(usaeb\x94qr\x80\x95", *CONSTANTS))
"""Instructions that make no new object."""

OPTIMIZER = re.compile(r"optim.*", re.DOTALL)
MOMENTS = (".exp_avg", ".exp_avg_sq", ".max_exp_avg_sq", ".momentum_buffer")


@dataclass(slots=True, eq=False)
class Made:
    """A class or function that a pickle names, or what the pickle makes with it; does nothing."""

    name: str
    arguments: Any = None
    """Arguments of the call; None for the class or function itself."""
    state: Any = None


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


def interpret(content: bytes, shown: str) -> Any:
    """Return the value of a pickle, with a `Made` for all but numbers, texts, tuples, lists and dictionaries.

    Raises UnsafeCheckpoint for a name outside `NAMES` and for instructions that these files never need.
    """
    if content[:1] != b"\x80":
        raise ValueError("the file is no pickle")
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    push = stack.append
    at, left = 0, MAX_VALUES
    for _ in range(MAX_STEPS):
        code = content[at]
        at += 1
        if code in b"hj":  # BINGET, LONG_BINGET
            size = 1 if code == 0x68 else 4
            push(memo[int.from_bytes(content[at : at + size], "little")])
            at += size
        elif code == 0x4B:  # BININT1
            push(content[at])
            at += 1
        elif code == 0x28:  # MARK
            marks.append(len(stack))
        elif code in b"usaeb":  # SETITEMS, SETITEM, APPEND, APPENDS, BUILD
            start = marks.pop() if code in b"ue" else len(stack) - (2 if code == 0x73 else 1)
            items = stack[start:]
            del stack[start:]
            target = stack[-1]
            if code == 0x62 and type(target) is Made:
                target.state = items[0]
            elif code in b"ae" and type(target) is list:
                target.extend(items)
            # A tuple of tuples of … as a key would be hashed by recursion, without a limit.
            elif type(target) is dict and all(type(key) in (str, int, Made) for key in items[::2]):
                target.update(zip(items[::2], items[1::2], strict=True))
            else:
                raise ValueError("an item is put into no list or dictionary")
        elif code in CONSTANTS:
            push(CONSTANTS[code])
        elif code in b"\x94qr":  # MEMOIZE, BINPUT, LONG_BINPUT
            size = {0x94: 0, 0x71: 1, 0x72: 4}[code]
            if size and int.from_bytes(content[at : at + size], "little") != len(memo):
                raise ValueError("the memo is not filled in order")
            memo.append(stack[-1])
            at += size
        elif code in b"\x80\x95":  # PROTO, FRAME
            at += 1 if code == 0x80 else 8
        elif code == 0x2E:  # STOP
            return stack.pop()
        if code in UNMADE:
            continue
        left -= 1
        if not left:
            break
        value: Any
        if code in b"\x85\x86\x87t":  # TUPLE1, TUPLE2, TUPLE3, TUPLE
            start = marks.pop() if code == 0x74 else len(stack) - (code - 0x84)
            if start < 0:
                raise ValueError("the stack is too short")
            value = tuple(stack[start:])
            del stack[start:]
        elif code in b"\x81R":  # NEWOBJ, REDUCE
            arguments, kind = stack.pop(), stack.pop()
            if type(kind) is not Made or kind.arguments is not None or type(arguments) is not tuple:
                raise ValueError("something is called that is no class or function")
            value = Made(kind.name, arguments)
        elif code == 0x7D:  # EMPTY_DICT
            value = {}
        elif code == 0x5D:  # EMPTY_LIST
            value = []
        elif code in b"JM\x8aG":  # BININT, BININT2, LONG1, BINFLOAT
            size = {0x4A: 4, 0x4D: 2, 0x8A: content[at] + 1, 0x47: 8}[code]
            number = content[at : at + size]
            signed = code != 0x4D
            value = int.from_bytes(number[code == 0x8A :], "little", signed=signed) if code != 0x47 else 0.0
            at += size
        elif code in b"\x8cX":  # SHORT_BINUNICODE, BINUNICODE
            size = content[at] if code == 0x8C else int.from_bytes(content[at : at + 4], "little")
            at += 1 if code == 0x8C else 4
            value = content[at : at + size].decode()
            at += size
        elif code == 0x51:  # BINPERSID
            value = Made("storage", stack.pop())
        elif code in b"\x93c":  # STACK_GLOBAL, GLOBAL
            if code == 0x93:
                name = ".".join((stack.pop(), stack.pop())[::-1])
            else:
                end = content.index(b"\n", content.index(b"\n", at) + 1)
                name = content[at:end].decode().replace("\n", ".")
                at = end + 1
            if not NAMES.fullmatch(name):
                raise UnsafeCheckpoint(
                    f"{shown} would run {legible(name)} when it is opened, so it was not opened; save only tensors and "
                    "plain values, by torch.distributed.checkpoint.save"
                )
            value = Made(name)
        else:
            raise UnsafeCheckpoint(
                f"{shown} holds the pickle instruction {code}, which torch.distributed.checkpoint never writes, so it "
                "was not opened; save the checkpoint again"
            )
        push(value)
        if content[at] == 0x94:  # MEMOIZE
            memo.append(value)
            at += 1
    raise _too_large(shown)


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
    except (ValueError, IndexError, TypeError) as error:
        raise _damaged(path) from error
    if type(made) is not Made or not made.name.endswith(".Metadata") or type(made.state) is not dict:
        raise _damaged(path)
    return made.state


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
            file = _part_name(info["relative_path"], str(folder / METADATA))
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
    """Return the first byte of a piece's values in its file, and the distance of neighbours along each dimension.

    Both are from the pickle in the archive, which must agree with `.metadata`.
    """
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


def _part_name(name: object, shown: str) -> str:
    if type(name) is not str or Path(name).name != name or not name.endswith(DISTRIBUTED) or "\0" in name:
        named = legible(name) if type(name) is str else "something"
        raise NotACheckpoint(
            f"{shown} names {named}, which is no {DISTRIBUTED} file in the same folder; write it again"
        )
    return name


def _incomplete(folder: Path, key: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{folder / METADATA} lists pieces of {legible(key)} that overlap, leave gaps or lie outside; write it again"
    )


def _damaged(path: Path) -> NotACheckpoint:
    return NotACheckpoint(f"{path} is damaged or not by torch.distributed.checkpoint; copy or write the folder again")


def _too_large(shown: str) -> ShardedCheckpoint:
    advice = f"save the model without its optimizer, or {conversion(Path(shown).parent)}"
    return ShardedCheckpoint(f"{shown} lists more pieces than are read in place; {advice}")
