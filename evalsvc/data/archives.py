"""Files that hold many images: where each image is, and its bytes. Nothing is unpacked, and no file is read whole.

Whoever writes such a file chooses every number in it. So the number of images, the lengths of names and the sizes of
headers are bounded before they are read, and the libraries that parse headers get no more bytes than that.
"""

from __future__ import annotations

import math
import os
import tarfile
import threading
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from pyarrow import types

from evalsvc.data.captions import ID_COLUMNS, TEXT_COLUMNS, Caption, CaptionData, caption_data
from evalsvc.data.files import check_text, limited_memory
from evalsvc.errors import DataChanged, InvalidData, first_few, show_name
from evalsvc.files.opened import OpenFile
from evalsvc.spec.images import PICTURES

MAX_IMAGES, MAX_NAMES = 1_500_000, 1 << 27
"""Largest number of images of a source (ImageNet has fewer), of headers of a tar, and of characters of all names."""
MAX_STORED_BYTES = 1 << 28
"""Largest number of bytes of a stored image that is read as a whole: those of MAX_PIXELS without compression."""
MAX_HEADER, MAX_FOOTER = 1 << 17, 1 << 25
"""Largest number of bytes of a header of a tar or an .npz file, and of the metadata of a Parquet file."""
MAX_GROUP, GROUP_MEMORY = 1 << 29, 1 << 31
"""Largest number of bytes that a row group of a Parquet file has by its metadata, and that reading it may take."""
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
    stored = pyarrow.OSFile(file.name)  # the open file, whatever becomes of its name
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
    content, size, last = pyarrow.OSFile(file.name), math.prod(shape[1:]), shape[3] == 3

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


# Parquet


def parquet_images(file: OpenFile, shown: str) -> StoredFiles:
    """Find the images in the rows of a Parquet file, and the names and texts of the images."""
    with _reading(shown):
        file.stream.seek(-8, os.SEEK_END)
        if int.from_bytes(file.stream.read(4), "little") > MAX_FOOTER:
            raise ValueError("the metadata are too long")
        limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_IMAGES}
        table = pyarrow.parquet.ParquetFile(file.name, **limits)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        ends = list(accumulate(group.num_rows for group in groups))
        image, text, name = _columns({field.name: field.type for field in table.schema_arrow}, shown)
        largest = max((group.total_byte_size for group in groups), default=0)
        count = ends[-1] if ends and min(group.num_rows for group in groups) >= 0 else 0
        if not 0 < count <= MAX_IMAGES or largest > MAX_GROUP:
            raise InvalidData(
                f"{shown} has {count:,} rows, and up to {largest:,} bytes in a row group; write 1 to {MAX_IMAGES:,} "
                f"rows, and at most {MAX_GROUP:,} bytes in a row group, with row_group_size=100"
            )
        texts, listed = (
            [] if path is None else table.read([path], use_threads=False).flatten().column(0).to_pylist()
            for path in (text, name)
        )
        named = None not in (listed or [None])
        names = bounded_names(map(str, listed), shown) if named else list(map(str, range(count)))
        ids = names if named else [str(row) for row in range(1, count + 1)]
        prompts = (_caption(shown, *row) for row in zip(range(count), ids, texts, strict=True))
        captions = caption_data(shown, prompts) if texts else None
    lock, kept = threading.Lock(), dict[int, Any]()

    def read(row: int) -> bytes:
        group = bisect_right(ends, row)
        with lock, _reading(shown):
            if group not in kept:
                kept.clear()
                kept[group] = table.read_row_group(group, [image], use_threads=False).flatten().column(0)
            content: bytes | None = kept[group][row - ends[group]].as_py()  # from the end
        if content is None or len(content) > MAX_STORED_BYTES:
            raise InvalidData(f"{shown}, row {row} has no image, or more than {MAX_STORED_BYTES:,} bytes; remove it")
        return content

    return StoredFiles(names, read, captions, named)


def _caption(shown: str, row: int, name: str, text: object) -> Caption:
    return Caption(name, check_text(f"{shown}, row {row}", text).strip(), None, None, f"row {row}")


def _columns(kinds: Mapping[str, Any], shown: str) -> tuple[str, str | None, str | None]:
    """Return the columns of images, of texts, and of names."""
    images = {name: name for name, kind in kinds.items() if types.is_binary(kind) or types.is_large_binary(kind)}
    structs = {name for name, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0}
    images |= {name: f"{name}.bytes" for name in structs}
    image = "image" if "image" in images else next(iter(images), None)
    if image is None or (image != "image" and len(images) > 1):
        listed = first_few([show_name(name) for name in images or kinds], 10) or "nothing"
        raise InvalidData(f"{shown} needs a column `image` of image files' bytes, found {listed}; rename a column")
    plain = {name: name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)}
    numbers = {name: name for name, kind in kinds.items() if types.is_integer(kind)}
    text = next(filter(None, map(plain.get, TEXT_COLUMNS)), None)
    name = next(filter(None, map((plain | numbers).get, ID_COLUMNS)), None)
    if name is None and text is None and image in structs and kinds[image].get_field_index("path") >= 0:
        name = f"{image}.path"
    return images[image], text, name


@contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        with limited_memory(GROUP_MEMORY, f"reading {shown}"):
            yield
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException):
        # The library's messages quote the file.
        raise InvalidData(f"{shown} is not a Parquet file, or is broken; write it again") from None
