"""Files that hold many images: where each image is, and its bytes. Nothing is unpacked, and no file is read whole.

Whoever writes such a file chooses every number in it. So the number of images, the lengths of names and the sizes of
headers are bounded before they are read, and the libraries that parse headers get no more bytes than that.
"""

from __future__ import annotations

import math
import os
import tarfile
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy
from numpy.typing import NDArray

from evalsvc.data.captions import CaptionData
from evalsvc.errors import DataChanged, InvalidData
from evalsvc.files.opened import OpenFile
from evalsvc.spec.images import PICTURES

MAX_IMAGES, MAX_NAMES = 1_500_000, 1 << 27
"""Largest number of images of a source (ImageNet has fewer), of headers of a tar, and of characters of all names."""
MAX_STORED_BYTES = 1 << 28
"""Largest number of bytes of a stored image that is read as a whole: those of MAX_PIXELS without compression."""
MAX_HEADER = 1 << 17
"""Largest number of bytes of a header of a tar or an .npz file."""
ARRAY = "arr_0"


@dataclass(frozen=True)
class StoredFiles:
    """Image files in another file."""

    names: Sequence[str]
    read: Callable[[int], bytes]
    """Function that returns the content of an image, whose index the caller checks."""
    captions: CaptionData | None = None
    """Text of each image."""
    named: bool = True


class Content:
    """Bytes of an open file, whatever becomes of its name. Threads may read at once."""

    def __init__(self, file: OpenFile) -> None:
        self._descriptor = os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read_at(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def bounded_names(names: Iterable[str], shown: str) -> list[str]:
    """Return the names of all images of a source. Raises InvalidData for too many names, and for equal ones."""
    listed = list(islice(names, MAX_IMAGES + 1))
    if len(listed) > MAX_IMAGES or sum(map(len, listed)) > MAX_NAMES:
        raise InvalidData(
            f"{shown} has more than {MAX_IMAGES:,} images, or {MAX_NAMES:,} characters of names; give fewer"
        )
    if len(set(listed)) < len(listed):
        raise InvalidData(f"{shown} has two images of one name; give each image another name")
    return listed


def is_image(path: PurePosixPath) -> bool:
    """Return whether a relative path names an image, and no part of the path is hidden."""
    return path.suffix.lower() in PICTURES and not any(part.startswith(".") for part in path.parts)


# Tar

EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
UNREAD = (tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGLINK)


class _Refused(ValueError):
    """A tar cannot be read; the message says why."""


def tar_images(file: OpenFile, shown: str) -> StoredFiles:
    """Find the image files in a tar. Python's tarfile would follow links, and read headers of any size into memory."""
    places: list[tuple[str, int, int]] = []
    try:
        for header in tar_headers(file.stream, file.version[2]):
            path = PurePosixPath(header.name)
            if path.is_absolute() or ".." in path.parts or not (header.isreg() or header.isdir()):
                raise _Refused("a member is a link or a device, or its name leads out of the tar")
            if header.isreg() and is_image(path):
                if header.size > MAX_STORED_BYTES:
                    raise _Refused(f"an image has more than {MAX_STORED_BYTES:,} bytes")
                places.append((str(path), header.size, header.offset_data))
    except (ValueError, tarfile.HeaderError) as error:
        # Messages of the library may quote the file.
        reason = error if isinstance(error, _Refused) else "a header is broken, or the file is compressed or cut off"
        raise InvalidData(f"{shown} is not a tar of plain files: {reason}; write it with tar -cf") from None
    places.sort()
    stored = Content(file)
    names = bounded_names((name for name, _, _ in places), shown)
    return StoredFiles(names, lambda index: stored.read_at(*places[index][1:]))


def tar_headers(stream: BinaryIO, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of members, with `name` and `offset_data` set. Raises ValueError and HeaderError."""
    offset, name = 0, ""
    for _ in range(MAX_IMAGES):
        stream.seek(offset)
        if (block := stream.read(tarfile.BLOCKSIZE)) == bytes(tarfile.BLOCKSIZE):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        offset = header.offset_data = offset + len(block)
        if not 0 <= header.size <= end - offset:
            raise _Refused("it is cut off, or a header has an impossible size")
        if header.type in EXTENDED:
            if header.size > MAX_HEADER:
                raise _Refused("a header is too long")
            content = stream.read(header.size)
            is_name = header.type == tarfile.GNUTYPE_LONGNAME
            name = content.rstrip(b"\0").decode() if is_name else _name_in(content) or name
        elif header.type in UNREAD or header.type not in tarfile.SUPPORTED_TYPES:
            raise _Refused("a member is sparse, or of an unknown kind")
        else:
            header.name, name = name or header.name, ""
            yield header
        if header.type in EXTENDED or header.isreg():
            offset += -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    raise _Refused(f"it has more than {MAX_IMAGES:,} headers")


def _name_in(content: bytes) -> str:
    """Return the name in the lines of an extended header, `LENGTH KEYWORD=VALUE`, or nothing."""
    fields = dict(line.partition(b" ")[2].partition(b"=")[::2] for line in content.split(b"\n"))
    if b"size" in fields or any(keyword.startswith(b"GNU.sparse") for keyword in fields):
        raise _Refused("a member is sparse, or has a size of more than 8 GB")
    return fields.get(b"path", b"").decode()


# NumPy


class _Bounded:
    """Stream for libraries that take the size of what they read from the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_HEADER:
            raise ValueError("a header is too long")
        return self._stream.read(MAX_HEADER if size < 0 else size)


def npz_images(file: OpenFile, shown: str) -> tuple[tuple[int, ...], Callable[[int], NDArray[numpy.uint8]]]:
    """Return the shape [n, 3, H, W] of the array in which ADM's scripts keep images, and what reads an image."""
    stream: Any = _Bounded(file.stream)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ValueError("two arrays of one name")
        member = members[ARRAY]
        stream.seek(member.header_offset + 26)
        lengths = numpy.frombuffer(stream.read(4), "<u2")
        stream.seek(member.header_offset + 30 + int(lengths.sum()))
        shape, by_column, dtype = _NPY[numpy.lib.format.read_magic(stream)](stream)
        offset, kind = stream.tell(), f"{dtype.name} {[*map(int, shape)]}"[:80]
    except Exception:  # a broken header is an error of zipfile, ast or NumPy, and some quote the file
        raise InvalidData(
            f"{shown} has no array `{ARRAY}`, or is compressed or cut off; write the images with numpy.savez"
        ) from None
    right = dtype == numpy.uint8 and not by_column and len(shape) == 4 and 3 in (shape[1], shape[3])
    if not right or not 0 < shape[0] <= MAX_IMAGES or min(shape) < 1:
        raise InvalidData(
            f"{shown}: `{ARRAY}` is {kind}; it must be uint8 [n, height, width, 3] in C order, n in 1…{MAX_IMAGES:,}"
        )
    if math.prod(shape) > file.version[2] - offset:
        raise InvalidData(f"{shown} is cut off; `{ARRAY}` is {kind}; copy or write it again")
    content, size, last = Content(file), math.prod(shape[1:]), shape[3] == 3

    def read(index: int) -> NDArray[numpy.uint8]:
        pixels = numpy.frombuffer(content.read_at(size, offset + index * size), numpy.uint8)
        if len(pixels) < size:
            raise DataChanged(f"{shown} became shorter while its images were read; evaluate again")
        return pixels.reshape(shape[1:]).transpose(2, 0, 1) if last else pixels.reshape(shape[1:])

    return ((shape[0], 3, *shape[1:3]) if last else shape), read


def npz_names(file: OpenFile, shown: str) -> set[str]:
    """Return the names of the arrays in an .npz file."""
    stream: Any = _Bounded(file.stream)
    try:
        with zipfile.ZipFile(stream) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception:  # as in `npz_array`
        raise InvalidData(f"{shown} is not an .npz file, or is cut off; write it again with numpy.savez") from None


_NPY = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
