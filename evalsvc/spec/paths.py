"""Paths in a task's parameters: what a suite may write, what becomes of it, and what may be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidData

DATASETS = "datasets:"

PACKAGE = Path(__file__).parents[1]

NEVER = (Path("/proc"), Path("/sys"))
"""Below any root: there are the environments and memories of processes, and no data."""

MAX_PATH = 4096
"""Characters; no system opens longer ones."""

MAX_FOLDERS = 64
"""Of a path: links are followed folder by folder."""

MAX_PATHS = 500
"""Of a suite. What may be read is checked path by path, which takes most of a millisecond."""


def local_data(settings: Settings, path: str) -> str:
    """The local path of a data file or folder in a checked suite; it need not exist.

    Raises:
        InvalidData: it is outside what suites may read: EVALSVC_ROOTS but for `NEVER` and what is private to the
            service, the operator's own folders, what is shipped.
    """
    local = settings.datasets_path / path.removeprefix(DATASETS) if path.startswith(DATASETS) else Path(path)
    try:
        # Links are followed: one that lies in a folder may lead out of it. Where to is not told.
        resolved = local.resolve()
    except (OSError, RuntimeError, ValueError):
        resolved = Path("/proc")  # which is outside
    require_readable(settings, resolved, path)
    return str(local)


@dataclass(frozen=True)
class Readable:
    """The rule for what is open under these settings, as an `opening.Allow`; equal for equal settings."""

    settings: Settings

    def __call__(self, real: Path, shown: str) -> None:
        """Raise what `require_readable` raises."""
        require_readable(self.settings, real, shown)


def require_readable(settings: Settings, resolved: Path, shown: str) -> None:
    """Raise unless a path without links lies where suites may read; `shown` is what messages call it.

    This is the one rule for data; `files.opened` asks again of the very file that it has opened.

    Raises:
        InvalidData: it is outside; see `local_data`.
    """
    of_the_operator = (settings.datasets_path, settings.assets_path, *filter(None, [settings.suites_path]))
    opened = (*settings.root_paths, *of_the_operator, PACKAGE)
    if not lies_within(resolved, opened, (*NEVER, *settings.private_paths)):
        roots = ", ".join(map(str, settings.root_paths)) or "none"
        raise InvalidData(
            f"{shown!r} is, or leads, outside the folders that suites may read ({roots}, and `datasets:`), or into "
            "evalsvc's own data folder or keys; move it, or have the operator add its folder to EVALSVC_ROOTS"
        )


def lies_within(resolved: Path, opened: Iterable[Path], closed: Iterable[Path]) -> bool:
    """Whether the nearest of these folders that a path without links lies in is one of `opened`."""
    nearest_opened, nearest_closed = (
        max((len(folder.parts) for item in folders if resolved.is_relative_to(folder := item.resolve())), default=0)
        for folders in (opened, closed)
    )
    return nearest_opened > nearest_closed


def _resolve_data_path(path: str, info: ValidationInfo) -> str:
    context = info.context or {}
    base, allowed = context.get("base"), context.get("allowed")
    if "\0" in path:
        raise ValueError("a path has no NUL character; leave it out")
    if path.count("/") > MAX_FOLDERS:
        raise ValueError(f"the path leads through {path.count('/'):,} folders; give at most {MAX_FOLDERS}")
    if next(context.get("paths", repeat(1))) > MAX_PATHS:
        raise ValueError(f"the suite names more than {MAX_PATHS} files; put a part into another suite")
    if not path.startswith(("/", DATASETS)):
        if base is None:
            raise ValueError(
                f"{path!r} is relative; give an absolute path, or datasets:NAME for the folder EVALSVC_DATASETS"
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
"""An asset in a task's parameters: its name, or the path of a file like a DataPath; a path has a slash in it."""
