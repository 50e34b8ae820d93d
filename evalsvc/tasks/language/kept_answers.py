"""What a checkpoint answered, kept in files: no task and no evaluation on this machine asks it the same again.

A folder belongs to a checkpoint and to all else that moves its answers; a file in it has the answers of one shard by
the digests of their questions, so that other suites find them too. Files that were used least recently go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evalsvc.errors import os_reason
from evalsvc.files.atomic import write_whole
from evalsvc.spec.protocol import digest

log = logging.getLogger(__name__)

FOLDER = "answers"

KEPT_BYTES = 1 << 30
"""Of all files together; what 11,000 documents are answered takes three million."""


def find_answers(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """What was kept under `key`, by the digests of the questions; without what is damaged."""
    found: dict[str, Any] = {}
    for path in sorted(_place(folder, key).glob("*.json")):
        answers = _read(path, key)
        found |= answers
        if answers:
            with suppress(OSError):  # a folder that is only read keeps its order
                os.utime(path)
    return found


def keep_answers(folder: Path, key: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
    """Keep JSON-able `answers` to questions, by digest, under `key`, which says all else that they depend on."""
    path = _place(folder, key) / f"{digest(sorted(answers))}.json"
    content = json.dumps({"key": key, "answers": answers}).encode()
    try:
        write_whole(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content, durable=False)
        _drop_oldest(folder / FOLDER)
    except OSError as error:  # costs time and nothing else
        log.warning("answers are not kept: %s: %s", path, os_reason(error))


def _place(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / FOLDER / digest(key)


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return {}
        found = json.loads(content)
        return dict(found["answers"]) if found["key"] == key else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _drop_oldest(folder: Path) -> None:
    """Delete the files that were used least recently, until the others take at most KEPT_BYTES."""
    files = sorted(_sizes(folder), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > KEPT_BYTES:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # others are still in it
                path.parent.rmdir()


def _sizes(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """When each file was used last, its size and its path. Another process may delete one meanwhile."""
    for path in folder.glob("*/*.json"):
        with suppress(OSError):
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path
