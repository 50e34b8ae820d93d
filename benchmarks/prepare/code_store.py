"""Codes of images on disk, by the digest of the stored image: what was encoded once is never encoded again.

A folder belongs to one image tokenizer and one way of cropping, and knows nothing of captions, text tokenizers and
layouts. Its files have rows of one length: SHA-256 of the stored image, SHA-256 of its cropped pixels, and its codes.
The name of a file is the SHA-256 of the file, so processes on several machines may add to one folder, and a damaged
file is noticed.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from evalsvc.errors import DataChanged
from evalsvc.files.atomic import write_whole

SUFFIX = ".codes"

FILE_IMAGES = 4096
"""Number of images in a file of codes."""

FILE_SECONDS = 15.0
"""Seconds after which waiting codes are written, so that a killed process loses no more than these."""


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    row: int
    pixels: bytes
    """SHA-256 of the cropped pixels."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Codes that are not written yet."""

    file: bytes
    pixels: bytes
    codes: NDArray[numpy.int64]


class CodeStore:
    """Codes of images in a folder. One thread adds; others may ask."""

    def __init__(self, folder: Path, codes: int, codebook_size: int) -> None:
        """Open the folder, which need not exist, for images of `codes` codes below `codebook_size`.

        Raises OSError if a file cannot be read.
        """
        self.folder = folder
        self.damaged: list[str] = []
        """Names of files that do not hold what their names say; their images are encoded again."""
        kind = "<u2" if codebook_size <= 1 << 16 else "<u4"
        self._row = numpy.dtype([("file", "u1", (32,)), ("pixels", "u1", (32,)), ("codes", kind, (codes,))])
        self._codebook_size = codebook_size
        self._places: dict[bytes, _Place] = {}
        self._waiting: dict[bytes, _Waiting] = {}
        self._written = time.monotonic()
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            self._index(path)

    def __contains__(self, file: str) -> bool:
        """Return whether the codes of the image with this digest are known."""
        key = bytes.fromhex(file)
        return key in self._places or key in self._waiting

    def __len__(self) -> int:
        return len(self._places)

    def add(self, file: str, pixels: str, codes: NDArray[numpy.int64]) -> None:
        """Add the codes [N] of an image. Raises OSError if the disk is full."""
        key = bytes.fromhex(file)
        self._waiting[key] = _Waiting(key, bytes.fromhex(pixels), codes)
        if len(self._waiting) >= FILE_IMAGES or time.monotonic() - self._written > FILE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the codes that were added. Raises OSError if the disk is full."""
        if self._waiting:
            rows = numpy.zeros(len(self._waiting), self._row)
            for row, image in zip(rows, self._waiting.values(), strict=True):
                row["file"], row["pixels"] = list(image.file), list(image.pixels)
                row["codes"] = image.codes
            content = rows.tobytes()
            path = self.folder / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
            write_whole(path, content)
            self._enter(path, rows)
            self._waiting.clear()
        self._written = time.monotonic()

    def pixels(self, file: str) -> str:
        """Return the digest of the cropped pixels of an image that was flushed."""
        return self._places[bytes.fromhex(file)].pixels.hex()

    def codes(self, file: str) -> list[int]:
        """Return the codes of an image that was flushed. Raises DataChanged if its file was changed meanwhile."""
        place = self._places[bytes.fromhex(file)]
        try:
            [row] = numpy.fromfile(place.path, self._row, count=1, offset=place.row * self._row.itemsize)
        except (OSError, ValueError):
            row = None
        if row is None or row["file"].tobytes().hex() != file:
            raise DataChanged(f"{place.path} was changed or removed while it was read; run the command again")
        codes: list[int] = row["codes"].tolist()
        return codes

    def _index(self, path: Path) -> None:
        content = path.read_bytes()
        is_whole = content and hashlib.sha256(content).hexdigest() == path.stem
        if not is_whole or len(content) % self._row.itemsize:
            self.damaged.append(path.name)
            return
        rows = numpy.frombuffer(content, self._row)
        if int(rows["codes"].max()) >= self._codebook_size:
            self.damaged.append(path.name)
            return
        self._enter(path, rows)

    def _enter(self, path: Path, rows: NDArray[Any]) -> None:
        for number, row in enumerate(rows):
            place = _Place(path, number, row["pixels"].tobytes())
            self._places.setdefault(row["file"].tobytes(), place)
