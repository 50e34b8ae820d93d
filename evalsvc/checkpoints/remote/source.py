"""What is asked of a place that checkpoints lie in: what is there, and its bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from evalsvc.checkpoints.reference import MAX_FILES, Identity, weights_among
from evalsvc.errors import NotACheckpoint, SourceUnreachable

T = TypeVar("T")

METADATA_SECONDS = 10.0
"""How long a place may take to say what is there: a request waits for it."""

BLOCK = 8 << 20
"""Bytes that are read at a time; between two, cancelling and deadlines are looked at."""

MAX_BESIDE = 50_000_000
"""Bytes of a file that is fetched along with a folder's weights: a configuration, an index, a tokenizer."""


@dataclass(frozen=True)
class RemoteFile:
    name: str
    """Without folders."""
    size: int
    path: str
    """What its source reads it by."""
    etag: str
    """Another one where the content is another: an ETag, a digest, or the time of the last change."""


@dataclass(frozen=True)
class Listing:
    """What lies at an address: a file, or the files of a folder."""

    files: Sequence[RemoteFile]
    is_folder: bool

    @property
    def identity(self) -> Identity:
        """As a posted checkpoint keeps it; the etag of a folder is a digest over those of its files."""
        size = sum(file.size for file in self.files)
        if not self.is_folder:
            return Identity(size, 0, short(self.files[0].etag))
        lines = "".join(f"{file.name}\0{file.size}\0{file.etag}\n" for file in self.files)
        return Identity(size, 0, hashlib.sha256(lines.encode()).hexdigest())


def short(etag: str) -> str:
    """An etag as it is stored."""
    return etag if len(etag) <= 128 else hashlib.sha256(etag.encode()).hexdigest()


def weights_of_folder(shown: object, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files of a Hugging Face folder that a model is read from: one kind of weights, and what lies beside them.

    Raises NotACheckpoint, ShardedCheckpoint.
    """
    first = weights_among({file.name for file in files}, str(shown))
    stem, _, rest = first.partition(".")
    ending = rest.removesuffix(".index.json")
    wanted = [
        file
        for file in files
        if (file.name == first if rest == ending else file.name.startswith(f"{stem}-") and file.name.endswith(ending))
        or (file.name.endswith(".json") and file.size <= MAX_BESIDE)
        or (file.name == "params.txt" and file.size <= MAX_BESIDE)
    ]
    return sorted(wanted, key=lambda file: file.name)


def require_few(shown: object, count: int) -> None:
    """Raise NotACheckpoint where a folder holds more files than a checkpoint does."""
    if count > MAX_FILES:
        raise NotACheckpoint(f"{shown} holds more than {MAX_FILES:,} files, which no checkpoint does; post one of them")


def within(seconds: float, shown: object, call: Callable[[], T]) -> T:
    """What `call` gives, if it does so in time; SourceUnreachable if not. A call that hangs is left behind."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="remote-metadata", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise SourceUnreachable(
            f"{shown}: its store did not answer within {seconds:g} s; look at the network, try again"
        )
    return results[0]
