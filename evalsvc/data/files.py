"""Opening data files, with messages that name file and line, and a limit on the memory that reading the files of a
`submitter` may take.
"""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalsvc.checkpoints.reference import Identity, identify
from evalsvc.errors import CheckpointGone, InvalidData, json_reason, os_reason, type_name
from evalsvc.files.opened import Allow, anywhere, open_file

CACHED_FILES = 4
"""Number of parsed data files that a process keeps, since a suite's tasks and their shards alternate."""
MEMORY = 4 << 30
"""Bytes that the benchmarks of a task, or a tokenizer, may take: a file of few characters can ask for any number."""

_lock = threading.Lock()
_within: list[tuple[int, int]] = []
"""Limits before each of the contexts that this process is in; the outermost context decides."""


def identify_file(path: Path, what: str) -> Identity:
    """Return size and modification time of a file, named `what` in messages."""
    if path.is_dir():
        raise InvalidData(f"the {what} {path} is a folder; give a file")
    try:
        return identify(path)
    except CheckpointGone:
        raise InvalidData(f"the {what} {path} does not exist or cannot be read; check the path") from None


def read_bytes(path: Path, allow: Allow = anywhere, limit: int = -1) -> bytes:
    """Return the content of a data file of at most `limit` bytes."""
    try:
        with open_file(path, "data file", allow).stream as stream:
            content = stream.read(limit + 1 if limit >= 0 else -1)
    except OSError as error:
        raise unreadable(path, error) from None
    if 0 <= limit < len(content):
        raise InvalidData(f"{path} has more than {limit:,} bytes; give a smaller file")
    return content


def read_lines(path: Path, allow: Allow = anywhere) -> Iterator[tuple[int, bytes]]:
    """Yield number, counted from 1, and content of each line that is not blank."""
    try:
        with open_file(path, "data file", allow).stream as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InvalidData:
    return InvalidData(f"the data file {path} cannot be read: {os_reason(error)}; check the path and its permissions")


def parse_object(where: str, line: bytes, keys: str) -> dict[str, object]:
    """Parse the JSON object of a line at `where`; a message says that it must have `keys`."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where} is not valid JSON: {json_reason(error)}; correct it") from None
    if not isinstance(content, dict):
        raise InvalidData(f"{where} is {type_name(content)}; it must be an object with {keys}")
    return content


def check_text(where: str, text: object, key: str = "text") -> str:
    """Return `text` if it is a string that can be encoded as UTF-8."""
    if not isinstance(text, str):
        raise InvalidData(f"{where}: `{key}` is {type_name(text)}; it must be a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidData(f"{where}: `{key}` holds half of a surrogate pair, which is no character; write it as UTF-8")
    return text


def private_bytes() -> int:
    """Return the memory that this process has reserved for data of its own; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as stream:  # a third of the time of `Path.read_text`
            return int(stream.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


@contextmanager
def limited_memory(size: int, what: str) -> Iterator[None]:
    """Let this process take at most `size` bytes more than it has, within the context.

    A request beyond the limit is a MemoryError in Python, but ends the process in a library that cannot do without, and
    the worker's nanny then starts another. The limit is the whole process's, and one shard at a time runs in a process.
    """
    with _lock:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        if not _within and (taken := private_bytes()):
            bounds = [taken + size, *(bound for bound in before if bound != resource.RLIM_INFINITY)]
            resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), before[1]))
        _within.append(before)
    try:
        yield
    except MemoryError:
        raise InvalidData(f"{what} takes more than {size:,} bytes of memory; make it smaller") from None
    finally:
        with _lock:
            if len(_within) == 1:
                resource.setrlimit(resource.RLIMIT_DATA, _within[0])
            # Contexts of other threads may end in any order, and the first limit is the one to return to.
            _within.pop()
