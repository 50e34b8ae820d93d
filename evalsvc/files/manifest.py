"""Manifest of a folder that is uploaded: the SHA-256 of each file by its name, as JSON.

A manifest is sent like a file, after which `upload:` and the SHA-256 of the manifest name the folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsvc.errors import InvalidRequest

BEGIN = b'{"files":'
"""First bytes of a manifest. No format of weights begins with these bytes."""

MAX_FILES, MAX_DEPTH, MAX_PART = 1000, 4, 255
"""Maximum number of files, of levels in a name, and of bytes in a level of a name."""

MAX_BYTES = 1_000_000

FORM = '{"files": {"config.json": "SHA256", "model.safetensors": "SHA256"}}'

STATES = re.compile(r"(optim(izer)?|stats|scheduler|scaler|rng|random|training)([._=-]|\Z)|.*optim_states", re.I)
"""Names of files and folders with the state of a training job. Models are read without these files."""


def files_to_send(folder: Path) -> dict[str, os.stat_result]:
    """Return the files of a folder to upload, by name, the smallest first: all but empty and hidden files, and states
    of the training job."""
    files: dict[str, os.stat_result] = {}
    for path in folder.rglob("*"):
        name, parts = path.relative_to(folder).as_posix(), path.relative_to(folder).parts
        is_left_out = any(STATES.match(part) or part.startswith(".") for part in parts if part != ".metadata")
        if not is_left_out and len(parts) <= MAX_DEPTH and path.is_file() and (status := path.stat()).st_size:
            files[name] = status
        if len(files) > MAX_FILES:
            raise InvalidRequest(
                f"{folder} holds more than {MAX_FILES:,} files, too many to upload; give the folder of one checkpoint"
            )
    return dict(sorted(files.items(), key=lambda item: (item[1].st_size, item[0])))


def write_manifest(digests: Mapping[str, str]) -> bytes:
    if len(manifest := json.dumps({"files": dict(digests)}, sort_keys=True).encode()) > MAX_BYTES:
        raise InvalidRequest(f"the names of {len(digests):,} files are too long to upload them; shorten the names")
    return manifest


def read_manifest(content: bytes) -> dict[str, str]:
    """Return the SHA-256 of each file by its name. A `submitter` wrote the manifest."""
    try:
        manifest: Any = json.loads(content)
        if list(manifest) != ["files"] or not isinstance(files := manifest["files"], dict) or not files:
            raise ValueError(f"it is not of the form {FORM}")
        if len(files) > MAX_FILES:
            raise ValueError(f"it names more than {MAX_FILES:,} files")
        for name, digest in files.items():
            _require_inside(name, files)
            if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"{name[:100]!r} has no SHA-256 of 64 small hexadecimal digits")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the manifest of the folder is wrong: {error}; send a manifest such as {FORM}") from None
    return files


def _require_inside(name: str, files: Mapping[str, object]) -> None:
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and len(parts) <= MAX_DEPTH
    if not is_plain or any(part in ("", ".", "..") or len(part.encode()) > MAX_PART for part in parts):
        raise ValueError(
            f"{name[:100]!a} is no name of a file in the folder, of at most {MAX_DEPTH} levels of {MAX_PART} bytes"
        )
    if above := next((path for end in range(1, len(parts)) if (path := "/".join(parts[:end])) in files), None):
        raise ValueError(f"{above!r} is a file and the folder of {name!r}")
