"""Reading the small files of a configuration, with bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from evalsvc.errors import InvalidModelConfig, json_reason, os_reason

MAX_JSON_FILES = 100
"""Maximum number of JSON files in a checkpoint's folder that are searched for its model."""

MAX_CONFIG_BYTES = 1_000_000

MAX_MODEL_BYTES = 100_000
"""Maximum number of bytes of a model JSON that was found by searching; those of open_lm have 400 bytes."""


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Return the object in a JSON file of at most `limit` bytes. Raises InvalidModelConfig."""
    if not is_file(path):
        raise InvalidModelConfig(f"{path} is not a file; use the path of a model JSON")
    if path.stat().st_size > limit:
        raise InvalidModelConfig(f"{path} is larger than {limit:,} bytes, too many for a model JSON; check the path")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelConfig(f"{path} is not JSON: {json_reason(error)}; correct the file") from error
    except OSError as error:
        raise InvalidModelConfig(f"{path} cannot be read: {os_reason(error)}; check its permissions") from error
    if not isinstance(fields, dict):
        raise InvalidModelConfig(f"{path} holds a {type(fields).__name__}; a model JSON is an object")
    return fields


def json_files(folder: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield the JSON objects in `folder`; other files are skipped."""
    paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_JSON_FILES:
        raise InvalidModelConfig(
            f"{folder} holds more than {MAX_JSON_FILES} JSON files, too many to search for the model; set "
            "`model` to a path, a registered name such as 'open_lm_1b', or the fields"
        )
    for path in paths:
        try:
            yield path, read_json(path, MAX_MODEL_BYTES)
        except InvalidModelConfig:
            continue


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file that this process can see."""
    try:
        return path.is_file()
    except OSError:  # the name is too long, or the folder is not accessible
        return False
