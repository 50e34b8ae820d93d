"""The configuration that lies beside a checkpoint elsewhere: small files, read when it is posted."""

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
from evalsvc.spec.model_config import MAX_CONFIG_BYTES, config_beside

MAX_BESIDE_FILES = 20
"""More JSON files than that are data, and a model's is not looked for among them."""


def config_beside_remote(uri: str, settings: Settings) -> dict[str, Any] | None:
    """What `config_beside` finds in the folder of a checkpoint elsewhere and one above; None behind http.

    Raises:
        InvalidModelConfig: a file is broken, or the choice is not clear.
        SourceUnreachable: the store does not answer in time.
    """
    parsed = parse_remote(uri, settings)
    if parsed.scheme in HTTP:
        return None
    with TemporaryDirectory(prefix="evalsvc-") as folder:
        above = Path(folder) / "above"
        here = above / "here"
        here.mkdir(parents=True)
        inside = within(METADATA_SECONDS, parsed, lambda: _copy_beside(parsed, settings, here))
        try:
            return config_beside(here if inside else here / parsed.name)
        except InvalidModelConfig as error:
            names = {str(here): str(parsed if inside else _parent(parsed)), str(above): str(_parent(parsed))}
            message = error.message
            for private, posted in names.items():
                message = message.replace(private, posted)
            raise InvalidModelConfig(message) from None


def _copy_beside(uri: RemoteUri, settings: Settings, here: Path) -> bool:
    """Copy what is small and could be a configuration; True where `uri` is a folder, which is `here` then."""
    source = ObjectSource(uri)
    is_folder = source.list().is_folder
    folder = uri if is_folder else _parent(uri)
    for place in (here, here.parent):
        if folder is None or not _is_allowed(folder, settings):
            break
        for file, content in _small_files(ObjectSource(folder)):
            (place / file.name).write_bytes(content)
        folder = _parent(folder)
    return is_folder


def _small_files(folder: ObjectSource) -> Iterator[tuple[RemoteFile, bytes]]:
    try:
        files = folder.files()
    except (CheckpointNotAllowed, FileNotFoundError):  # an object may be read where its folder may not be listed
        return
    wanted = [file for file in files if file.name.endswith(".json") or file.name == "params.txt"]
    for file in wanted if len(wanted) <= MAX_BESIDE_FILES else ():
        if file.size <= MAX_CONFIG_BYTES:
            yield file, b"".join(folder.read(file, 0))[: MAX_CONFIG_BYTES + 1]


def _parent(uri: RemoteUri) -> RemoteUri | None:
    """The folder that something lies in; None for a bucket, and for a repository."""
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
