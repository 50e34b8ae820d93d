"""Search for the model configuration of a remote checkpoint: small files in its folder, read when it is posted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, RemoteFile, within
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
            names = {
                str(folder_copy): str(parsed if inside else _parent(parsed)),
                str(parent_copy): str(_parent(parsed)),
            }
            message = error.message
            for private, posted in names.items():
                message = message.replace(private, posted)
            raise InvalidModelConfig(message) from None


def _copy_small_files(uri: RemoteUri, settings: Settings, folder_copy: Path) -> bool:
    """Copy small files that could be a configuration; return whether `uri` is a folder, which is then copied to
    `folder_copy`."""
    source = ObjectSource(uri)
    is_folder = source.list().is_folder
    folder = uri if is_folder else _parent(uri)
    for place in (folder_copy, folder_copy.parent):
        if folder is None or not _is_allowed(folder, settings):
            break
        for file, content in _small_files(ObjectSource(folder)):
            (place / file.name).write_bytes(content)
        folder = _parent(folder)
    return is_folder


def _small_files(folder: ObjectSource) -> Iterator[tuple[RemoteFile, bytes]]:
    try:
        files = folder.files()
    except (CheckpointNotAllowed, FileNotFoundError):  # a store may permit reading an object but not listing its folder
        return
    wanted = [file for file in files if file.name.endswith(".json") or file.name == "params.txt"]
    for file in wanted if len(wanted) <= MAX_MODEL_FILES else ():
        if file.size <= MAX_CONFIG_BYTES:
            yield file, b"".join(folder.read(file, 0))[: MAX_CONFIG_BYTES + 1]


def _parent(uri: RemoteUri) -> RemoteUri | None:
    """Return the parent folder; None for a bucket and for a repository."""
    path = uri.path.rpartition("/")[0]
    if not path:
        return None
    return RemoteUri(uri.scheme, uri.place, path, uri.revision)


def _is_allowed(folder: RemoteUri, settings: Settings) -> bool:
    try:
        parse_remote(str(folder), settings)
    except CheckpointNotAllowed:
        return folder.scheme == "hf" and not settings.remote_roots
    return True
