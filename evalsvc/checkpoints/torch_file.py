"""Files of torch.save, read so that neither a `submitter` nor a `pull request` runs code: a pickle is a program.

torch reads with `weights_only=True`, and before that, every instruction and name in the pickle must be in a list of
those that tensors and plain values need, or name a class, such as argparse.Namespace. Every such name stands for
`StandIn`, an object without content: no class is imported, created or called. What reading costs is bounded by the
limits of a worker, not here. The watcher reads outlines without torch and numpy.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal

from evalsvc.errors import NotACheckpoint, UnsafeCheckpoint

ZIP = b"PK\x03\x04"

LEGACY_PICKLES = 5
"""Number of pickles at the start of a file before torch 1.6: magic number, version, machine, content, keys of the
storages."""

MAX_PICKLE = 100_000_000
"""Maximum number of bytes of the pickle of an archive, which has no values of tensors: 400,000 tensors."""

INSTRUCTIONS = re.compile(
    r"PROTO|STOP|MARK|GLOBAL|NEWOBJ|REDUCE|BUILD|BINPERSID|APPENDS?|SETITEMS?|TUPLE[123]?|EMPTY_(TUPLE|LIST|DICT|SET)"
    r"|NONE|NEW(FALSE|TRUE)|BININT[12]?|BINFLOAT|BINUNICODE|SHORT_BINSTRING|LONG1|(LONG_)?BIN(PUT|GET)"
)

NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.(set|complex)|_codecs\.encode"
    r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout|_tensor\._rebuild_from_type_v2)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor"
    r"|meta_tensor_no_storage)|torch\.(storage\.)?[A-Z]\w*Storage|torch\.(bool|u?int\d+|b?float\d+\w*|complex\d+)"
    r"|numpy\.(dtype|(core|_core)\.multiarray\.scalar)"
)
"""Names that a pickle may use: those that torch.save writes for tensors and plain values, and numpy's scalars."""

KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))

ADVICE = "so it was not opened; save only tensors and plain values: torch.save({'state_dict': model.state_dict()}, ...)"

INERT = re.compile(
    r"(?!(os|posix|nt|sys)\.)([A-Za-z_]\w*\.)+_?[A-Z]\w*|collections\.defaultdict|datetime\.(date|datetime|time\w+)"
    r"|(__builtin__|builtins)\.(bool|bytes|dict|float|int|list|long|object|str|unicode)"
    r"|numpy\.(ndarray|(core|_core)\.multiarray\._reconstruct)"
)
"""Names that a training's options and optimizers need: classes, by their capital letter, and a few more. Functions are
refused, since a file that calls one was made to run code."""

PLAIN = frozenset(("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "GLOBAL"))
"""Instructions that give a value without others, and that are frequent."""

PYTHON_3 = {"unicode": "str", "long": "int"}

MAX_DEPTH, MAX_STACK = 100, 1_000_000
"""Maximum nesting of tuples, whose hash calls itself for each level until the process crashes, and of values that a
pickle holds at a time."""

MAX_INERT = 100
"""Maximum number of such names in a file: torch goes through all names for each instruction."""


def require_safe(path: Path) -> bool:
    """Raise UnsafeCheckpoint or NotACheckpoint as `load` does; return whether the file was written since torch 1.6."""
    return inert_names(path)[0]


def inert_names(path: Path) -> tuple[bool, frozenset[str]]:
    """Return what `require_safe` does, and the names in the file that a reader must replace by `StandIn`."""
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP)) == ZIP
        file.seek(0)
        pickles = io.BytesIO(_archive_pickle(path)) if is_archive else file
        inert: set[str] = set()
        try:
            for _ in range(1 if is_archive else LEGACY_PICKLES):
                inert |= _require_harmless(path, pickles, INERT if is_archive else None)
        except (ValueError, IndexError, KeyError, MemoryError) as error:
            raise damaged(path, error) from error
    return is_archive, frozenset(inert)


def read_outline(path: Path) -> dict[str, object]:
    """Return an archive's keys with values that are numbers or texts, others as OTHER. Nothing in it is executed."""
    content = _archive_pickle(path)
    try:
        for _ in _bounded(path, io.BytesIO(content)):
            pass
        outline = _OutlineUnpickler(io.BytesIO(content)).load()
    except NotACheckpoint:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise NotACheckpoint(f"{path} is damaged: its pickle is truncated; copy or write it again") from error
    items = outline.items() if isinstance(outline, dict) else ()
    return {key: value if type(value) in (int, float, str) else OTHER for key, value in items if isinstance(key, str)}


def _archive_pickle(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            if "constants.pkl" in entries:
                raise NotACheckpoint(
                    f"{path} is a TorchScript program; save the model's state_dict() with torch.save instead"
                )
            if "data.pkl" not in entries:
                raise NotACheckpoint(
                    f"{path} is a zip file that torch.save did not write (it has no data.pkl); use a checkpoint file"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise NotACheckpoint(
                    f"{path} is a compressed zip, which torch.save never writes; save it again with torch.save"
                )
            entry = entries["data.pkl"]
            if entry.file_size > MAX_PICKLE:
                raise NotACheckpoint(
                    f"{path} has a pickle of {entry.file_size:,} bytes, too many for a model; save tensors as tensors"
                )
            entry.CRC = None  # type: ignore[assignment] # torch may have written no checksum
            with archive.open(entry) as stream:
                return stream.read()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise NotACheckpoint(f"{path} is cut off: its zip directory is missing; copy or write it again") from error


def _bounded(path: Path, stream: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """Yield the instructions of a pickle and their arguments, as long as they need little memory and no recursion."""
    depths: list[int] = []  # of the values that the pickle holds
    marks: list[int] = []
    memo: dict[object, int] = {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if name in PLAIN:
            depths.append(0)
        elif "PUT" in name or name == "MEMOIZE":
            number = len(memo) if argument is None else argument
            if not isinstance(number, int) or number > count:  # Python makes a list of this length
                raise NotACheckpoint(f"{path} is damaged: its pickle counts its values wrongly; save it again")
            memo[number] = depths[-1]
        elif "GET" in name:
            depths.append(memo[argument])
        elif name == "MARK":
            marks.append(len(depths))
        else:
            taken = instruction.stack_before
            start = len(depths) - len(taken)
            if pickletools.markobject in taken:
                start = marks.pop() - taken.index(pickletools.markobject)
            deeper = name.startswith(("TUPLE", "REDUCE", "NEWOBJ"))
            depths[start:] = [max(depths[start:], default=0) + deeper] * len(instruction.stack_after)
        if len(depths) > MAX_STACK or (depths and depths[-1] > MAX_DEPTH):
            raise NotACheckpoint(f"{path} has a pickle of too many or nested values, unlike a model; save it again")
        yield instruction, argument


def _require_harmless(path: Path, stream: IO[bytes], inert: re.Pattern[str] | None) -> set[str]:
    named: set[str] = set()
    for instruction, argument in _bounded(path, stream):
        if not INSTRUCTIONS.fullmatch(instruction.name):
            raise UnsafeCheckpoint(
                f"{path} holds the pickle instruction {ord(instruction.code)}, which only files that run code need, "
                "so it was not opened; write it by torch.save with the default protocol"
            )
        if instruction.name == "GLOBAL" and not NAMES.fullmatch(name := str(argument).replace(" ", ".")):
            if inert is None or not inert.fullmatch(name):
                raise UnsafeCheckpoint(f"{path} would run {name} when it is opened, {ADVICE}")
            built_in = name.removeprefix("__builtin__.")  # of Python 2, whose names torch.save writes
            named.add(name if built_in == name else f"builtins.{PYTHON_3.get(built_in, built_in)}")
            if len(named) > MAX_INERT:
                raise UnsafeCheckpoint(f"{path} names more than {MAX_INERT} classes, {ADVICE}")
    return named


def damaged(path: Path, error: Exception) -> NotACheckpoint:
    return NotACheckpoint(
        f"{path} is damaged or not a torch.save file ({type(error).__name__}); copy or write it again"
    )


class _LikeDict(type):
    """Metaclass whose classes equal `dict`, the only class whose objects torch lets a pickle add entries to."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class StandIn(metaclass=_LikeDict):
    """Object in the place of every object whose class a pickle names. It has no content, and nothing happens to it."""

    __slots__ = ()

    def __init__(self, *_arguments: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...

    def __setitem__(self, _key: object, _value: object) -> None: ...

    def append(self, _value: object) -> None: ...

    add = append


OTHER: Final = StandIn()
"""Placeholder for every value that is not a plain number or text."""


class _OutlineUnpickler(pickle.Unpickler):
    def find_class(self, _module: str, _name: str) -> type[StandIn]:
        return StandIn

    def persistent_load(self, _pid: object) -> StandIn:
        return OTHER


class PlainDtype:
    """A replacement for numpy.dtype while a file is read: plain numbers only, with the byte order as the only state.

    numpy's own class reads the memory layout from the pickle, including pointers to objects. numpy's scalars are common
    as learning rates and metrics in training loops.
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
