"""Paths in a task's parameters: their forms in a suite, their resolution, and which files a `submitter` may name."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError
from evalsvc.files.opened import ReadRule

DATASETS = "datasets:"

PACKAGE = Path(__file__).parents[1]

MAX_PATH = 4096
"""Maximum number of characters of a path; no operating system opens longer ones."""

MAX_FOLDERS = 64
"""Maximum number of folders of a path, because links are resolved folder by folder."""

MAX_PATHS = 500
"""Maximum number of paths in a suite. Each path takes almost a millisecond to check."""


class Readable(ReadRule):
    """Rule for the data of suites: the roots, the operator's own folders and shipped files, without private paths."""

    def __init__(self, settings: Settings) -> None:
        of_the_operator = (settings.datasets_path, settings.assets_path, *filter(None, [settings.suites_path]))
        super().__init__(settings.root_paths, settings.private_paths, (*of_the_operator, PACKAGE))


def local_data(settings: Settings, path: str) -> str:
    """Return the local path of a data file or folder in a checked suite, which need not exist. `files.opened` applies
    the rule again to the file that is opened."""
    local = settings.datasets_path / path.removeprefix(DATASETS) if path.startswith(DATASETS) else Path(path)
    try:
        # A link in an allowed folder may lead out of it. Errors do not tell where.
        resolved = local.resolve()
    except (OSError, RuntimeError, ValueError):
        resolved = Path("/proc")  # outside every root
    Readable(settings)(resolved, path)
    return str(local)


def _resolve_data_path(path: str, info: ValidationInfo) -> str:
    context = info.context or {}
    base, allowed = context.get("base"), context.get("allowed")
    if "\0" in path:
        raise ValueError("the path contains a NUL character; remove it")
    if path.count("/") > MAX_FOLDERS:
        raise ValueError(f"the path has {path.count('/'):,} folders; use at most {MAX_FOLDERS}")
    if next(context.get("paths", repeat(1))) > MAX_PATHS:
        raise ValueError(f"the suite names more than {MAX_PATHS} files; move some tasks to another suite")
    if not path.startswith(("/", DATASETS)):
        if base is None:
            raise ValueError(
                f"{path!r} is relative; use an absolute path, or datasets:NAME for a file in EVALSVC_DATASETS"
            )
        path = str((base / path).resolve())
    if allowed is not None:
        try:
            allowed(path)
        except EvalsvcError as error:
            raise ValueError(error.message) from None
    return path


def _resolve_asset(name: str, info: ValidationInfo) -> str:
    return _resolve_data_path(name, info) if "/" in name else name


DataPath = Annotated[
    str, Field(max_length=MAX_PATH, json_schema_extra={"format": "path"}), AfterValidator(_resolve_data_path)
]
"""A data file in a task's parameters: an absolute path, a path relative to the suite's own file, or `datasets:NAME`."""

AssetName = Annotated[
    str, Field(max_length=MAX_PATH, json_schema_extra={"format": "asset"}), AfterValidator(_resolve_asset)
]
"""An asset in a task's parameters: its name, or the path of a file like a DataPath. A name with a slash is a path."""
