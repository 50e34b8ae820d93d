"""The interface of remote stores: listing an address, and reading its bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from evalsvc.checkpoints.formats import ADAPTER_FILES, DISTRIBUTED, PART, SHARD, adapter, weights_among
from evalsvc.checkpoints.reference import Identity
from evalsvc.errors import SourceUnreachable
from evalsvc.families.family import LISTS

T = TypeVar("T")

METADATA_SECONDS = 10.0
"""Seconds that a store may take for a listing, while a request waits."""

BLOCK = 8 << 20
"""Bytes that are read at a time. Cancellation and deadlines are checked between two blocks."""

MAX_COMPANION_BYTES = 50_000_000
"""Maximum number of bytes of a file that is fetched along with a folder's weights: a configuration, an index, a
tokenizer."""


@dataclass(frozen=True)
class RemoteFile:
    name: str
    size: int
    path: str
    etag: str
    """Version of the content: an ETag, a digest, or the time of the last change."""


@dataclass(frozen=True)
class Listing:
    """The files at an address: a single file, or those of a folder."""

    files: Sequence[RemoteFile]
    is_folder: bool

    @property
    def identity(self) -> Identity:
        etag = "".join(f"{file.name}\0{file.size}\0{file.etag}\n" for file in self.files)
        if not self.is_folder and len(etag := self.files[0].etag) <= 128:
            return Identity(self.files[0].size, 0, etag)
        return Identity(sum(file.size for file in self.files), 0, hashlib.sha256(etag.encode()).hexdigest())


def weights_of_folder(shown: object, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a Hugging Face folder that a model is read from: weights, and small files next to them."""
    first = weights_among({file.name for file in files}, str(shown))
    if first in ADAPTER_FILES:  # its base is not known
        raise adapter(str(shown))
    inner, is_distributed = first.removesuffix(LISTS[0]), first in LISTS
    stem, _, rest = first.partition(".")
    ending = rest.removesuffix(".index.json")

    def holds_weights(name: str) -> bool:
        if is_distributed:
            return name == first or (name.startswith(inner) and name.endswith(DISTRIBUTED))
        if rest == ending:
            return name == first or any(kind.fullmatch(first) and kind.fullmatch(name) for kind in (SHARD, PART))
        return name.startswith(f"{stem}-") and name.endswith(ending)

    wanted = [
        file
        for file in files
        if holds_weights(file.name)
        or ((file.name.endswith(".json") or file.name == "params.txt") and file.size <= MAX_COMPANION_BYTES)
    ]
    return sorted(wanted, key=lambda file: file.name)


def within(seconds: float, shown: object, call: Callable[[], T]) -> T:
    """Return the result of `call`, or raise SourceUnreachable if it takes too long. A call that hangs is abandoned."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="remote-metadata", daemon=True).start()
    if not wait([future], seconds).done:
        raise SourceUnreachable(
            f"{shown}: its store did not answer within {seconds:g} s; check the network and try again"
        )
    return future.result()
