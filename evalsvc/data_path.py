"""Paths in a task's parameters: what a suite may write, and what becomes of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def _resolve_data_path(path: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base")
    if path.startswith(("/", "datasets:")):
        return path
    if base is None:
        raise ValueError(
            f"{path!r} is relative; give an absolute path, or datasets:NAME for the folder EVALSVC_DATASETS"
        )
    return str((base / path).resolve())


def _resolve_asset(name: str, info: ValidationInfo) -> str:
    return _resolve_data_path(name, info) if "/" in name else name


DataPath = Annotated[str, AfterValidator(_resolve_data_path)]
"""A data file in a task's parameters: an absolute path, a path relative to the suite's own file, or `datasets:NAME`."""

AssetName = Annotated[str, AfterValidator(_resolve_asset)]
"""An asset in a task's parameters: its name, or the path of a file like a DataPath; a path has a slash in it."""
