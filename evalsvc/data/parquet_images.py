"""Images in the rows of a Parquet file, with their names and texts. `images` imports this module for such a file alone,
since pyarrow is large."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import types

from evalsvc.data.archives import MAX_IMAGES, MAX_STORED_BYTES, StoredFiles, bounded_names
from evalsvc.data.captions import ID_COLUMNS, TEXT_COLUMNS, Caption, caption_data
from evalsvc.data.files import check_text, limited_memory
from evalsvc.errors import InvalidData, first_few, show_name
from evalsvc.files.opened import OpenFile

MAX_FOOTER = 1 << 25
"""Largest number of bytes of the metadata of a file."""
MAX_GROUP, GROUP_MEMORY = 1 << 29, 1 << 31
"""Largest number of bytes that a row group has by its metadata, and that reading it may take."""


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
