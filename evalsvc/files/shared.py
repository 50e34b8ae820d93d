"""The folder that the service shares with workers of other machines, marked against the `accident` of two services.

The folder has `statistics` and `outputs`, and the service alone writes to it. Each process has a path of its own to it,
EVALSVC_SHARED, so a worker makes sure that the folder at its path is that of the service that sent the shard.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from evalsvc.errors import DataDirectoryUnusable, SourceUnreachable, os_reason
from evalsvc.files.atomic import FOR_GROUP, open_regular, write_whole

MARKER = "service-id"
"""File with the id of the service's database."""

MARKER_BYTES = 128


def claim_shared(folder: Path, service: str) -> None:
    """Make the folder, and mark it as that of a service. Raises DataDirectoryUnusable: it is that of another service,
    which removes files that its own database does not name, or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        if (owner := _owner(folder)) == "":
            write_whole(folder / MARKER, service.encode(), mode=FOR_GROUP)
    except OSError as error:
        raise DataDirectoryUnusable(
            f"the shared folder {folder} cannot be used: {os_reason(error)}; change the permissions, or choose another "
            "folder by EVALSVC_SHARED"
        ) from None
    if owner not in ("", service):
        raise DataDirectoryUnusable(
            f"the shared folder {folder} is that of another service; choose another folder by EVALSVC_SHARED, or "
            f"remove {folder / MARKER} if the other service is gone for good"
        )


def shared_owner(folder: Path) -> str:
    """Return the id of the service whose folder this is; empty if no service has claimed the folder."""
    try:
        return _owner(folder)
    except OSError:
        return ""


def require_shared(folder: Path, service: str) -> None:
    """Raise SourceUnreachable unless a worker sees the folder of this service at its own path to the folder."""
    try:
        owner = _owner(folder)
        problem = "it is that of another service" if owner else "no service has claimed it" + _contents(folder)
    except OSError as error:
        owner, problem = "", os_reason(error)
    if owner != service:
        raise SourceUnreachable(
            f"the worker on {platform.node()} cannot use {folder} as the folder that it shares with the service: "
            f"{problem}; mount the service's EVALSVC_SHARED there, reading suffices, or set EVALSVC_SHARED of the "
            "worker to the path where it is mounted"
        )


def _owner(folder: Path) -> str:
    try:
        with open_regular(folder / MARKER) as stream:
            return stream.read(MARKER_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return ", because it does not exist"
    return f", and it holds {len(os.listdir(folder))} other files"
