"""Answers of a run's base, kept in files: they are the same for every checkpoint that is compared with it."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsvc.protocol import digest

log = logging.getLogger(__name__)

FOLDER = "base_answers"


def find_answers(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was kept under `key`; None where nothing was, or what is there is damaged."""
    try:
        checksum, _, content = _path(folder, key).read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return None
        found = json.loads(content)
        return dict(found["answers"]) if found["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep_answers(folder: Path, key: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
    """Keep JSON-able `answers` under `key`, which says all that they depend on; whole or not at all.

    A folder that cannot be written costs time and nothing else, so that is logged only.
    """
    path = _path(folder, key)
    content = json.dumps({"key": key, "answers": answers}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            prefix=f"{path.stem}.", suffix=".partial", dir=path.parent, delete=False
        ) as file:
            partial = Path(file.name)
            try:
                file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                file.flush()
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the base's answers are not kept: %s: %s", path, error.strerror or error)


def _path(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / FOLDER / f"{digest(key)}.json"
