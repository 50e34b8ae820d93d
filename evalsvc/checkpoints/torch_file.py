"""Files of torch.save: checked before torch reads them, loaded without running code, or read in outline only.

`torch.load(weights_only=True)` keeps code from running. It does not keep a small file from using much memory or time:
by compressed entries, an endless directory, nested tuples, or an array of any length. So the bytes of the pickle are
checked first, and the archive must be unambiguous about which bytes these are. torch and numpy are imported only when a
file is loaded: the watcher reads outlines without them.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

from evalsvc.errors import NotACheckpoint, UnsafeCheckpoint

if TYPE_CHECKING:
    import numpy as np

ZIP = b"PK\x03\x04"

MAX_DIRECTORY = 16 << 20
"""Maximum number of bytes of a zip's directory; 100,000 tensors need half of that."""

MAX_OTHER_BYTES = 16 << 20
"""Maximum number of bytes in a file that are not values of tensors: mainly the pickle, which is read with Python
objects for every byte."""

MAX_DEPTH, MAX_TUPLE = 100, 10_000
"""Maximum number of levels of nested tuples, because hashing them recurses in C and may end the process, and most
values in a tuple."""

LEGACY_PICKLES = 5
"""Number of pickles at the start of a file before torch 1.6: magic number, version, machine, content, keys of the
storages."""

OPCODES = {instruction.code.encode("latin-1"): instruction for instruction in pickletools.opcodes}

INSTRUCTIONS = re.compile(
    r"PROTO|STOP|MARK|GLOBAL|NEWOBJ|REDUCE|BUILD|BINPERSID|APPENDS?|SETITEMS?|TUPLE[123]?|EMPTY_(TUPLE|LIST|DICT|SET)"
    r"|NONE|NEW(FALSE|TRUE)|BININT[12]?|BINFLOAT|BINUNICODE|SHORT_BINSTRING|LONG1|(LONG_)?BIN(PUT|GET)"
)
"""Instructions that torch's unpickler accepts."""

SAFE = frozenset(instruction.name for instruction in pickletools.opcodes if INSTRUCTIONS.fullmatch(instruction.name))

NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.(set|complex)|_codecs\.encode"
    r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout|_tensor\._rebuild_from_type_v2)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor"
    r"|meta_tensor_no_storage)|torch\.(storage\.)?[A-Z]\w*Storage|torch\.(bool|u?int\d+|b?float\d+\w*|complex\d+)"
    r"|numpy\.(dtype|(core|_core)\.multiarray\.scalar)"
)
"""Names that a pickle may use: those that torch.save writes for tensors and plain values, and numpy's scalars."""

KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
"""numpy's plain numbers, as in pickles."""

ADVICE = "so it was not opened; save only tensors and plain values: torch.save({'state_dict': model.state_dict()}, ...)"


OPTIONS = frozenset(("argparse.Namespace", "pathlib.PosixPath"))
"""Names in the options that training programs save next to the weights."""

CONVERSION = (
    "so it was not opened; if the file is your own, save it again without its options: "
    'python -P -c "import argparse, pathlib, sys, torch; torch.serialization.add_safe_globals([argparse.Namespace, '
    "pathlib.PosixPath]); old = torch.load(sys.argv[1], map_location='cpu', weights_only=True); torch.save({k: old[k] "
    "for k in ('state_dict', 'model', 'ema', 'step', 'steps', 'epoch') if k in old}, sys.argv[2])\" OLD.pt NEW.pt"
)


def load(path: Path) -> object:
    """Load a file of torch.save. Tensors are views of the mapped file, or copies for a file before torch 1.6.

    Raises:
        UnsafeCheckpoint: the file uses names other than those of tensors and plain values.
        NotACheckpoint: the file is damaged, or exceeds the bounds of a checkpoint in memory.
        OSError: the file cannot be read.
    """
    is_archive = require_safe(path)
    import torch

    allowed: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (PlainDtype, "numpy.dtype"),
        (_plain_scalar, "numpy.core.multiarray.scalar"),
        (_plain_scalar, "numpy._core.multiarray.scalar"),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{path} {error.message}, {ADVICE}") from error
    except OSError:
        raise
    except (
        Exception
    ) as error:  # a hostile or truncated file can make torch fail in any way, with a message that quotes the file
        raise _damaged(path, error) from error
    return content


def require_safe(path: Path) -> bool:
    """Raise UnsafeCheckpoint or NotACheckpoint as `load` does; return whether the file was written since torch 1.6."""
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP)) == ZIP
        file.seek(0)
        legacy = b"" if is_archive else file.read(MAX_OTHER_BYTES + 1)
    _require_safe(path, legacy or _archive_pickle(path), 1 if is_archive else LEGACY_PICKLES)
    return is_archive


def read_outline(path: Path, *, strictly: bool = False) -> dict[str, object]:
    """Return the keys of the dictionary in an archive, with values that are numbers or texts; others are OTHER.

    Nothing in the file is executed. An archive that holds no dictionary has no keys.

    Raises:
        NotACheckpoint: the file is truncated, or not a file of torch.save since 1.6.
        UnsafeCheckpoint: with `strictly`, the file uses names other than those of tensors and plain values.
        OSError: the file cannot be read.
    """
    content = _archive_pickle(path)
    try:
        content_read = _follow(path, io.BytesIO(content), strictly=strictly)
    except (ValueError, IndexError, KeyError) as error:
        raise NotACheckpoint(f"{path} is damaged: its pickle is truncated; copy or write it again") from error
    return content_read if isinstance(content_read, dict) else {}


def _damaged(path: Path, error: Exception) -> NotACheckpoint:
    return NotACheckpoint(
        f"{path} is damaged or not a torch.save file ({type(error).__name__}); copy or write it again"
    )


# the archive


def _archive_pickle(path: Path) -> bytes:
    """Return the pickle in a zip file. The file must be as torch.save writes it: uncompressed, each byte in one entry
    only."""
    size = path.stat().st_size
    _require_plain_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _cut_off(path) from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise NotACheckpoint(f"{path} is a TorchScript program; save the model's state_dict() with torch.save instead")
    if "data.pkl" not in names:
        raise NotACheckpoint(
            f"{path} is a zip file that torch.save did not write (it has no data.pkl); use a checkpoint file"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotACheckpoint(
            f"{path} is a compressed zip, which torch.save never writes; save it again with torch.save"
        )
    _require_own_bytes(path, size, entries)
    other = sum(entry.file_size for entry, name in zip(entries, names, strict=True) if not name.startswith("data/"))
    if other > MAX_OTHER_BYTES:
        raise NotACheckpoint(f"{path} holds {other:,} bytes that are not tensors; save only tensors and plain values")
    return _stored(path, entries[names.index("data.pkl")])


def _require_plain_directory(path: Path, size: int) -> None:
    """Raise NotACheckpoint unless the directory is small and ends where its only end record begins.

    zipfile creates an object for every entry, and searches for a directory that is not where the record says, which
    torch does not: the two would read different files.
    """
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read()
    if len(tail) < 22 or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise _cut_off(path)
    end, (length, begin) = size - 22, struct.unpack_from("<II", tail, len(tail) - 10)
    if len(tail) == 98 and tail[56:60] == b"PK\6\7":  # the locator of a zip64 end record
        end = size - 98
        if tail[:4] != b"PK\6\6" or struct.unpack_from("<Q", tail, 64) != (end,):
            raise _cut_off(path)
        length, begin = struct.unpack_from("<QQ", tail, 40)
    if length > MAX_DIRECTORY:
        raise NotACheckpoint(
            f"{path} claims a zip directory of {length:,} bytes, too many for a checkpoint; write it again"
        )
    if begin + length != end:
        raise NotACheckpoint(f"{path} does not have its zip directory at the recorded position; write it again")


def _cut_off(path: Path) -> NotACheckpoint:
    return NotACheckpoint(f"{path} is cut off: its zip directory is missing; copy or write it again")


def _require_own_bytes(path: Path, size: int, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raise NotACheckpoint if a name or a byte could belong to two entries.

    `entries` are sorted by position. torch looks up names in the folder of an arbitrary entry, ignoring case.
    """
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        raise NotACheckpoint(f"{path} has two entries of one name, which torch.save never writes; write it again")
    if len({entry.filename.partition("/")[0] for entry in entries}) > 1:
        raise NotACheckpoint(f"{path} has entries in two folders, which torch.save never writes; write it again")
    ends = [entry.header_offset for entry in entries[1:]] + [size]
    for entry, end in zip(entries, ends, strict=True):
        if entry.file_size != entry.compress_size or entry.header_offset + 30 + entry.file_size > end:
            raise NotACheckpoint(
                f"{path}: its entry {entry.filename[:80]!r} claims {entry.file_size:,} bytes that are not its own; "
                "copy or write it again"
            )


def _stored(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an uncompressed entry. The checksum is ignored, because torch may not have written one."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)
        skipped = sum(struct.unpack("<HH", lengths)) if len(lengths) == 4 else 0
        file.seek(entry.header_offset + 30 + skipped)
        return file.read(entry.file_size)


# the pickle


class _Other:
    """A value on the stack that is not examined."""


OTHER: Final = _Other()
"""Placeholder for every value that is not a plain number or text."""
_MARK: Final = _Other()
_ENCODE: Final = _Other()
"""Placeholder for `_codecs.encode`, by which pickles hold bytes. With most encodings its time is quadratic in the
length."""


class _Tuple:
    """A tuple on the stack."""

    def __init__(self, items: Sequence[object]) -> None:
        inner = [item for item in items if isinstance(item, _Tuple)]
        self.second = items[1] if len(items) > 1 else OTHER
        self.depth: int = 1 + max((item.depth for item in inner), default=0)
        self.size: int = 1 + len(items) + sum(item.size for item in inner)


def require_short_tuples(path: Path, content: bytes) -> None:
    """Raise NotACheckpoint unless a pickle is complete and its tuples are quick to hash, whatever names the pickle
    uses."""
    _require_safe(path, content, strictly=False)


def _require_safe(path: Path, content: bytes, pickles: int = 1, *, strictly: bool = True) -> None:
    """Raise UnsafeCheckpoint or NotACheckpoint unless the first `pickles` pickles in `content` hold only what a
    checkpoint needs."""
    stream = io.BytesIO(content)
    try:
        for _ in range(pickles):
            _follow(path, stream, strictly=strictly)
    except (ValueError, IndexError, KeyError) as error:
        if len(content) > MAX_OTHER_BYTES:  # the content was truncated
            raise NotACheckpoint(
                f"{path} begins with a pickle of more than {MAX_OTHER_BYTES:,} bytes, or with no pickle; save only "
                "tensors and plain values, by torch.save"
            ) from error
        raise _damaged(path, error) from error


def _follow(path: Path, stream: IO[bytes], *, strictly: bool = False) -> object:
    """Follow the instructions of a pickle with a stack of plain values, dictionaries of plain values, tuples and OTHER.

    With `strictly`, refuse instructions and names that files of tensors do not need before their operands are read.
    Return the object that the pickle stands for.

    Raises:
        NotACheckpoint: tuples take too long to hash.
        UnsafeCheckpoint: see `strictly`.
        ValueError, IndexError, KeyError: the pickle is truncated or invalid.
    """
    stack: list[object] = []
    memo: dict[object, object] = {}
    while True:
        instruction = OPCODES[stream.read(1)]
        name = instruction.name
        if strictly and name not in SAFE:
            raise UnsafeCheckpoint(
                f"{path} holds the pickle instruction {ord(instruction.code)}, which only files that run code need, "
                "so it was not opened; write it by torch.save with the default protocol"
            )
        argument = None if instruction.arg is None else instruction.arg.reader(stream)
        if name == "STOP":
            return stack.pop()
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            taken = _taken(stack, instruction) if instruction.stack_before else ()
            if strictly and (taken or name == "GLOBAL"):
                _require_harmless(path, name, argument, taken)
            stack += _results(path, instruction, argument, taken)


def _taken(stack: list[object], instruction: pickletools.OpcodeInfo) -> list[object]:
    """Pop the operands of an instruction from the stack, without its mark."""
    wanted, taken = instruction.stack_before, []
    if pickletools.markobject in wanted:
        while (value := stack.pop()) is not _MARK:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken += [stack.pop() for _ in wanted]
    return taken[::-1]


def _require_harmless(path: Path, name: str, argument: object, taken: Sequence[object]) -> None:
    """Raise UnsafeCheckpoint for a name that no checkpoint needs, and for any use of `encode` except on bytes."""
    if name == "GLOBAL" and not NAMES.fullmatch(wanted := str(argument).replace(" ", ".")):
        advice = CONVERSION if wanted in OPTIONS else ADVICE
        raise UnsafeCheckpoint(f"{path} would run {wanted} when it is opened, {advice}")
    if _ENCODE in taken:
        arguments = taken[1] if name == "REDUCE" else None
        if not isinstance(arguments, _Tuple) or arguments.second != "latin1":
            raise UnsafeCheckpoint(f"{path} would run _codecs.encode on something other than bytes, {ADVICE}")


def _results(
    path: Path, instruction: pickletools.OpcodeInfo, argument: object, taken: Sequence[object]
) -> Sequence[object]:
    """Return the values that an instruction puts on the stack."""
    name = instruction.name
    if not taken and name not in ("EMPTY_DICT", "TUPLE", "GLOBAL", "INST", "PERSID"):
        return [argument if isinstance(argument, int | float | str) else OTHER for _ in instruction.stack_after]
    if name == "EMPTY_DICT":
        return [{}]
    if name in ("SETITEM", "SETITEMS"):
        if isinstance(target := taken[0], dict):
            for key, value in zip(taken[1::2], taken[2::2], strict=True):
                if isinstance(key, str):
                    target[key] = value if isinstance(value, int | float | str) else OTHER
        return taken[:1]
    if name.startswith("TUPLE"):
        new_tuple = _Tuple(taken)
        if new_tuple.depth > MAX_DEPTH:
            raise NotACheckpoint(
                f"{path} holds tuples nested deeper than {MAX_DEPTH}; save only tensors and plain values"
            )
        if new_tuple.size > MAX_TUPLE:
            raise NotACheckpoint(
                f"{path} holds a tuple of more than {MAX_TUPLE:,} values; save only tensors and plain values"
            )
        return [new_tuple]
    return [_ENCODE if argument == "_codecs encode" else OTHER for _ in instruction.stack_after]


# numpy's scalars, which are common as learning rates and metrics in training loops


class PlainDtype:
    """A replacement for numpy.dtype while a file is read: plain numbers only, with the byte order as the only state.

    numpy's own class reads the memory layout from the pickle, including pointers to objects.
    """

    def __init__(self, kind: object, _align: object = False, _copy: object = True) -> None:
        if not isinstance(kind, str) or kind not in KINDS:
            raise UnsafeCheckpoint(f"would create numpy values of kind {str(kind)[:40]!r}, which are not plain numbers")
        self.kind = kind
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, ("<" | ">" | "|" | "=") as order, *_):
                self.order = order
            case _:
                raise UnsafeCheckpoint("would change the layout of numpy's numbers")


def _plain_scalar(dtype: object, data: object) -> np.generic:
    """Create a numpy scalar from bytes, as a replacement for numpy's own function."""
    import numpy as np

    plain = np.dtype(dtype.kind).newbyteorder(dtype.order) if type(dtype) is PlainDtype else None
    if plain is None or not isinstance(data, bytes) or len(data) != plain.itemsize:
        raise UnsafeCheckpoint("would create a numpy value from something other than its bytes")
    scalar: np.generic = np.frombuffer(data, plain)[0]
    return scalar
