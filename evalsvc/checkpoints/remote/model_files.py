"""Search for the model configuration of a remote checkpoint: small files in its folder, read when it is posted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed, InvalidModelConfig
from evalsvc.families.config_files import MAX_CONFIG_BYTES
from evalsvc.families.reading import find_model_config

MAX_MODEL_FILES = 20
"""Maximum number of JSON files in a remote folder that is searched for a model's. Folders with more hold data."""


def find_remote_model_config(uri: str, settings: Settings) -> dict[str, Any] | None:
    """Return the configuration in the folder of a remote checkpoint or its parent, see `find_model_config`; None for
    http.

    Raises:
        InvalidModelConfig: a file is broken, or the choice is ambiguous.
        SourceUnreachable: the store does not answer in time.
    """
    parsed = parse_remote(uri, settings)
    if parsed.scheme in HTTP:
        return None
    with TemporaryDirectory(prefix="evalsvc-") as folder:
        parent_copy = Path(folder) / "parent"
        folder_copy = parent_copy / "content"
        folder_copy.mkdir(parents=True)
        inside = within(METADATA_SECONDS, parsed, lambda: _copy_small_files(parsed, settings, folder_copy))
        try:
            return find_model_config(folder_copy if inside else folder_copy / parsed.name)
        except InvalidModelConfig as error:
            parent = str(_parent(parsed))
            message = error.message.replace(str(folder_copy), str(parsed) if inside else parent)
            raise InvalidModelConfig(message.replace(str(parent_copy), parent)) from None


def _copy_small_files(uri: RemoteUri, settings: Settings, folder_copy: Path) -> bool:
    """Copy small files that could be a configuration; return whether `uri` is a folder, which is then copied to
    `folder_copy`."""
    is_folder = ObjectSource(uri).list().is_folder
    folder = uri if is_folder else _parent(uri)
    for place in (folder_copy, folder_copy.parent):
        if folder is None or not _is_allowed(folder, settings):
            break
        source = ObjectSource(folder)
        try:
            files = source.files()
        except (CheckpointNotAllowed, FileNotFoundError):  # a store may permit reading an object but not listing
            files = ()
        wanted = [file for file in files if file.name.endswith(".json") or file.name == "params.txt"]
        for file in wanted if len(wanted) <= MAX_MODEL_FILES else ():
            if file.size <= MAX_CONFIG_BYTES:
                content = b"".join(source.read(file, 0))[: MAX_CONFIG_BYTES + 1]
                (place / file.name).write_bytes(content)
        folder = _parent(folder)
    return is_folder


def _parent(uri: RemoteUri) -> RemoteUri | None:
    """Return the parent folder; None for a bucket and for a repository."""
    path = uri.path.rpartition("/")[0]
    return replace(uri, path=path) if path else None


def _is_allowed(folder: RemoteUri, settings: Settings) -> bool:
    try:
        parse_remote(str(folder), settings)
    except CheckpointNotAllowed:
        return folder.scheme == "hf" and not settings.remote_roots
    return True
