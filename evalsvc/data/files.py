"""Opening data files, with messages that name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from evalsvc.checkpoints.reference import Identity, identify
from evalsvc.errors import CheckpointGone, InvalidData, json_reason, os_reason, type_name
from evalsvc.files.opened import Allow, anywhere, open_file

CACHED_FILES = 4
"""Number of parsed data files that a process keeps, since a suite's tasks and their shards alternate."""


def identify_file(path: Path, what: str) -> Identity:
    """Return size and modification time of a file, named `what` in messages. Raises InvalidData unless a file."""
    if path.is_dir():
        raise InvalidData(f"the {what} {path} is a folder; give a file")
    try:
        return identify(path)
    except CheckpointGone:
        raise InvalidData(f"the {what} {path} does not exist or cannot be read; check the path") from None


def read_bytes(path: Path, allow: Allow = anywhere, limit: int = -1) -> bytes:
    """Return the content of a data file. Raises InvalidData for more than `limit` bytes, and as `open_file`."""
    try:
        with open_file(path, "data file", allow).stream as stream:
            content = stream.read(limit + 1 if limit >= 0 else -1)
    except OSError as error:
        raise unreadable(path, error) from None
    if 0 <= limit < len(content):
        raise InvalidData(f"{path} has more than {limit:,} bytes; give a smaller file")
    return content


def read_lines(path: Path, allow: Allow = anywhere) -> Iterator[tuple[int, bytes]]:
    """Yield number, counted from 1, and content of each line that is not blank. Raises as `open_file`."""
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
    """Parse the JSON object of a line, which must have `keys`. Raises InvalidData with `where` first."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where} is not valid JSON: {json_reason(error)}; correct it") from None
    if not isinstance(content, dict):
        raise InvalidData(f"{where} is {type_name(content)}; it must be an object with {keys}")
    return content


def check_text(where: str, text: object, key: str = "text") -> str:
    """Return `text` if it is a string that can be encoded as UTF-8. Raises InvalidData otherwise."""
    if not isinstance(text, str):
        raise InvalidData(f"{where}: `{key}` is {type_name(text)}; it must be a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidData(f"{where}: `{key}` holds half of a surrogate pair, which is no character; write it as UTF-8")
    return text
