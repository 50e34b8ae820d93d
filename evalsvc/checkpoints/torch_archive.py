"""What a torch.save file must be before it is read, and where its pickle lies; without torch."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from evalsvc.errors import NotACheckpoint

MAX_DIRECTORY = 16 << 20
"""Bytes of a zip's catalogue; 100,000 tensors need half of that."""

MAX_BESIDE_DATA = 16 << 20
"""Bytes of all that is not a tensor's values: the pickle, which is read with Python objects for every byte."""

MAX_DEPTH = 100
"""Tuples in tuples: hashing a deep one is a recursion in C, which ends the process."""

LEGACY_PICKLES = 5
"""What a file before torch 1.6 begins with: a magic number, a version, the machine, the content, and what follows."""


def require_plain_archive(path: Path) -> None:
    """Raise NotACheckpoint unless a zip file is what torch.save writes: stored, each byte belonging to one entry."""
    read_pickle(path)


def read_pickle(path: Path) -> bytes:
    """The pickle in a zip file that is what torch.save writes. Raises NotACheckpoint, as `require_plain_archive`."""
    size = path.stat().st_size
    _require_small_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise NotACheckpoint(f"{path} is cut off: its zip directory is missing; copy or write it again") from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise NotACheckpoint(f"{path} is a TorchScript program; save the model's state_dict() with torch.save instead")
    if "data.pkl" not in names:
        raise NotACheckpoint(f"{path} is a zip file that torch.save did not write (it has no data.pkl)")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotACheckpoint(
            f"{path} is a compressed zip, which torch.save never writes; save it again with torch.save"
        )
    _require_own_bytes(path, size, entries)
    beside = sum(entry.file_size for entry in entries if not entry.filename.partition("/")[2].startswith("data/"))
    if beside > MAX_BESIDE_DATA:
        raise NotACheckpoint(f"{path} holds {beside:,} bytes that are no tensor; save only tensors and plain values")
    content = _stored(path, entries[names.index("data.pkl")])
    require_shallow(path, content)
    return content


def require_shallow(path: Path, content: bytes, pickles: int = 1) -> None:
    """Raise NotACheckpoint where a pickle makes tuples in tuples beyond MAX_DEPTH; nothing of it is carried out.

    `content` is what `pickles` of them lie in, one after the other, or its first MAX_BESIDE_DATA + 1 bytes. One that
    breaks off or makes no sense passes: who reads it says so.
    """
    stream = io.BytesIO(content)
    with suppress(ValueError, IndexError, KeyError, EOFError):
        for _ in range(pickles):
            if any(depth > MAX_DEPTH for depth in _tuple_depths(stream)):
                raise NotACheckpoint(
                    f"{path} holds tuples in tuples, more than {MAX_DEPTH} deep, which no checkpoint does"
                )
        return
    if len(content) > MAX_BESIDE_DATA:
        raise NotACheckpoint(
            f"{path} begins with a pickle of more than {MAX_BESIDE_DATA:,} bytes or none; save only tensors and plain "
            "values, by torch.save"
        )


def _tuple_depths(stream: IO[bytes]) -> Iterator[int]:
    """After every instruction of a pickle, how deep the tuple on its stack is.

    The instructions are carried out on depths alone: 0 is anything that is no tuple, None a mark.
    """
    stack: list[int | None] = []
    memo: dict[Any, int | None] = {}
    for instruction, argument, _place in pickletools.genops(stream):
        name = instruction.name
        if name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(None)
        else:
            below = _popped(stack, instruction)
            if name.startswith("TUPLE"):
                stack.append(1 + max(below, default=0))
            else:
                stack.extend(0 for _ in instruction.stack_after)
        yield (stack[-1] or 0) if stack else 0


def _popped(stack: list[int | None], instruction: pickletools.OpcodeInfo) -> list[int]:
    """What an instruction takes from the stack, its mark apart."""
    wanted, taken = list(instruction.stack_before), []
    if pickletools.markobject in wanted:
        while (depth := stack.pop()) is not None:
            taken.append(depth)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken += [stack.pop() or 0 for _ in wanted]
    return taken


def _stored(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is not compressed, whatever its checksum: torch need not have written one."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)
        skipped = sum(struct.unpack("<HH", lengths)) if len(lengths) == 4 else 0
        file.seek(entry.header_offset + 30 + skipped)
        return file.read(entry.file_size)


def _require_small_directory(path: Path, size: int) -> None:
    """Python's zipfile makes an object of every entry, and the file alone says how many there are."""
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22 - 20))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            return  # which zipfile says
        (length,) = struct.unpack_from("<I", tail, end + 12)
        locator = tail.rfind(b"PK\6\7", 0, end)
        if length == 0xFFFFFFFF and locator >= 0:
            (place,) = struct.unpack_from("<Q", tail, locator + 8)
            file.seek(min(place, size))
            record = file.read(56)
            length = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
    if length > MAX_DIRECTORY:
        raise NotACheckpoint(f"{path} announces a zip directory of {length:,} bytes, which no checkpoint needs")


def _require_own_bytes(path: Path, size: int, entries: list[zipfile.ZipInfo]) -> None:
    """`entries` by their place in the file: none twice, none over another, none beyond the end."""
    if len({entry.filename for entry in entries}) != len(entries):
        raise NotACheckpoint(f"{path} has two entries of one name, which torch.save never writes; write it again")
    ends = [entry.header_offset for entry in entries[1:]] + [size]
    for entry, end in zip(entries, ends, strict=True):
        if entry.file_size != entry.compress_size or entry.header_offset + 30 + entry.file_size > end:
            raise NotACheckpoint(
                f"{path}: its entry {entry.filename[:80]!r} announces {entry.file_size:,} bytes and does not have them "
                "to itself; copy or write it again"
            )
