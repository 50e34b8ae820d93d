"""Files of torch.save, read so that neither a `submitter` nor a `pull request` runs code: a pickle is a program.

torch reads with `weights_only=True`, and before that, every instruction and name in the pickle must be in a list of
those that tensors and plain values need, or name a class, such as argparse.Namespace. Every such name stands for
`StandIn`, an object without content: no class is imported, created or called. `InertUnpickler` checks pickles, reads
their outlines, and reads torch.distributed.checkpoint's, without torch and numpy.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal

from evalsvc.checkpoints.formats import ZIP, legible
from evalsvc.errors import NotACheckpoint, UnsafeCheckpoint

LEGACY_PICKLES = 5
"""Number of pickles at the start of a file before torch 1.6: magic number, version, machine, content, keys of the
storages."""

MAX_PICKLE = 100_000_000
"""Maximum number of bytes of the pickle of an archive, which has no values of tensors: 400,000 tensors."""

MAX_VALUES = 4_000_000
"""Maximum number of objects of such a pickle."""

NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex)|_codecs\.encode"
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
    r"|builtins\.(bool|bytes|dict|float|int|list|object|str)"
    r"|numpy\.(ndarray|(core|_core)\.multiarray\._reconstruct)"
)
"""Names that a training's options and optimizers need: classes, by their capital letter, and a few more. Functions are
refused, since a file that calls one was made to run code."""

MAX_NAMES = 100
"""Maximum number of names in a pickle: torch goes through all names for each instruction."""

MAX_MARKS, MAX_NESTED = 1000, 10_000
"""Maximum numbers of open lists, and of values in a tuple of tuples: a few bytes can nest so many that its hash, which
calls itself for each, never ends or ends the process."""


@dataclass(slots=True, eq=False)
class Made:
    """A class or function that a pickle names, or what the pickle makes with it; does nothing."""

    name: str
    arguments: Any = None
    """Arguments of the call; None for the class or function itself."""
    state: Any = None


class _Nested(tuple[object, ...]):
    size: int


class _Memo(list[object]):
    """Numbered values of a pickle. A dictionary needs more memory, and a list that grows to any number needs all."""

    def __setitem__(self, number: Any, value: Any) -> None:
        if number == 1 and not self:
            self.append(None)  # Python 2, which wrote torchvision's first weights, counts from 1
        if number != len(self):
            raise ValueError("the values are not numbered in order")
        self.append(value)


class InertUnpickler(pickle._Unpickler):
    """Interpreter of pickles that imports and calls nothing. Dictionaries have only texts, whole numbers and `Made` as
    keys. `load` raises UnsafeCheckpoint for a name or instruction that is not allowed, OverflowError for too many
    values, and any other error for a damaged pickle.
    """

    dispatch = property(lambda self: self)  # see `__getitem__`
    stack: list[Any]
    metastack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        stream: IO[bytes],
        shown: object,
        names: re.Pattern[str],
        functions: Mapping[int, Callable[[Any], None]],
        values: int = MAX_VALUES,
    ) -> None:
        super().__init__(stream, encoding="latin-1")
        self.memo = _Memo()
        self.shown, self.names, self.functions = shown, names, functions
        self.steps, self.values = 4 * values, values
        self.named: dict[str, Made] = {}

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.steps -= 1
        self.values -= code not in UNMADE
        if self.steps < 0 or self.values < 0:
            raise OverflowError("the pickle makes too many values")
        if code not in self.functions:
            raise UnsafeCheckpoint(
                f"{self.shown} holds the pickle instruction {code}, which only files that run code need, so it was "
                "not opened; write it by torch.save with the default protocol"
            )
        return self.functions[code]

    def find_class(self, module: str, name: str) -> Made:
        if module == "__builtin__":  # of Python 2, whose names torch.save writes, and torch reads as those of Python 3
            module, name = "builtins", {"unicode": "str", "long": "int"}.get(name, name)
        full = f"{module}.{name}"
        if not self.names.fullmatch(full):
            raise UnsafeCheckpoint(f"{self.shown} would run {legible(full)} when it is opened, {ADVICE}")
        if len(self.named) == MAX_NAMES and full not in self.named:
            raise UnsafeCheckpoint(f"{self.shown} names more than {MAX_NAMES} classes, {ADVICE}")
        return self.named.setdefault(full, Made(full))

    def persistent_load(self, pid: object) -> Made:
        return Made("storage", pid)

    def mark(self) -> None:
        if len(self.metastack) == MAX_MARKS:
            raise OverflowError("the pickle nests too many values")
        STANDARD[0x28](self)

    def call(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Made or kind.arguments is not None or not isinstance(arguments, tuple):
            raise ValueError("something is called that is no class or function")
        self.append(Made(kind.name, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not Made:
            raise ValueError("a plain value is given a state")
        self.stack[-1].state = state

    def set_items(self, several: bool) -> None:
        items = self.pop_mark() if several else [self.stack.pop(), self.stack.pop()][::-1]
        target = self.stack[-1]
        if type(target) is dict:
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if type(key) in (str, int, Made))
        elif type(target) is not Made:
            raise ValueError("an item is put into no dictionary")

    def nest(self, code: int) -> None:
        STANDARD[code](self)
        made = self.stack[-1]
        sizes = [item.size if type(item) is _Nested else len(item) for item in made if isinstance(item, tuple)]
        if sizes:
            self.stack[-1] = made = _Nested(made)
            made.size = sum(sizes, len(made))
            if made.size > MAX_NESTED:
                raise OverflowError("the pickle nests too many values")


STANDARD: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch

UNMADE = frozenset(b"hjK(usaebN\x88\x89)\x94qr\x80\x95")
"""Instructions that make no new object."""

NEWER = {code: STANDARD[code] for code in b"\x80\x95.(cQaet\x85\x86\x87)]}N\x88\x89KMJGXU\x8aqrhj\x8c\x93\x94"} | {
    ord("("): InertUnpickler.mark,
    ord("R"): InertUnpickler.call,
    0x81: InertUnpickler.call,  # NEWOBJ
    ord("b"): InertUnpickler.build,
    ord("s"): partial(InertUnpickler.set_items, several=False),
    ord("u"): partial(InertUnpickler.set_items, several=True),
}
"""Functions of the instructions that tensors and plain values need in any protocol."""

OLDER = {code: function for code, function in NEWER.items() if code not in b"\x95\x8c\x93\x94"} | {
    code: partial(InertUnpickler.nest, code=code) for code in b"t\x85\x86\x87"
}
"""Functions of the instructions of the protocol that torch.save writes and torch reads. torch hashes any tuple."""


def check(path: Path) -> tuple[bool, frozenset[str], object]:
    """Return whether a file was written since torch 1.6, the names in it that a reader must replace by `StandIn`, and
    its content without values of tensors. Raises UnsafeCheckpoint or NotACheckpoint as `load` does."""
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP)) == ZIP
        file.seek(0)
        pickles = io.BytesIO(_archive_pickle(path)) if is_archive else file
        inert: set[str] = set()
        names = re.compile(f"{NAMES.pattern}|{INERT.pattern}") if is_archive else NAMES
        content: object = None
        for _ in range(1 if is_archive else LEGACY_PICKLES):
            reader = InertUnpickler(pickles, path, names, OLDER)
            try:
                content = reader.load()
            except (UnsafeCheckpoint, OSError):
                raise
            except OverflowError as error:
                raise NotACheckpoint(
                    f"{path} has a pickle of too many or nested values, unlike a model; save tensors as tensors"
                ) from error
            except Exception as error:  # a damaged pickle can fail in any way
                raise damaged(path, error) from error
            inert.update(name for name in reader.named if not NAMES.fullmatch(name))
    return is_archive, frozenset(inert), content


def read_outline(path: Path) -> dict[str, object]:
    """Return the keys of an archive, checked by `check`, with values that are numbers or texts, others as OTHER."""
    is_archive, _, content = check(path)
    items = content.items() if is_archive and isinstance(content, dict) else ()
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


OTHER: Final = StandIn()
"""Placeholder for every value that is not a plain number or text."""


class PlainDtype:
    """A replacement for numpy.dtype while a file is read, for plain numbers: numpy's own class reads the memory layout
    from the pickle, including pointers. Training loops save numpy's scalars as learning rates and metrics."""

    def __init__(self, kind: object, _align: object = False, _copy: object = True) -> None:
        if not isinstance(kind, str) or kind not in KINDS:
            raise UnsafeCheckpoint(f"would create numpy values of kind {str(kind)[:40]!r}, which are not plain numbers")
        self.kind = kind
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UnsafeCheckpoint("would change the layout of numpy's numbers")
        self.order = state[1]
