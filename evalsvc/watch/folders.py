"""Candidates in a watched folder, on this machine or in a bucket."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalsvc.checkpoints.formats import FOLDER_FILES, PART, known_weights, parts_of, weight_map
from evalsvc.checkpoints.reference import MAX_FILES, files_of, identify
from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, Listing, weights_of_folder, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import CheckpointError, InvalidRequest, NotACheckpoint, ShardedCheckpoint, os_reason

FILE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".distcp")

INSIDE = "checkpoints"
"""Folder of checkpoints in the folder of an open_lm run."""


@dataclass(frozen=True)
class Candidate:
    name: str
    uri: str
    """Absolute path, or address in a store, as posted to the service."""
    mark: str
    """Fingerprint of the content by names, sizes and times: a changed mark means changed content."""
    size: int
    modified: float | None
    """Time of the last change, in seconds since 1970; None in a store."""
    path: Path | None
    problem: str | None = None


class LocalFolder:
    """Folder of this machine, and its folder `checkpoints`. The folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        return self.folder.is_dir()

    def list(self) -> Sequence[Candidate]:
        return [candidate for folder in (self.folder, self.folder / INSIDE) for candidate in _inside(folder)]


def look_at(path: Path) -> Candidate | None:
    """Return the file or folder at a path as it is now; None if the path is neither or was removed."""
    try:
        status = path.stat()
        try:
            files_of(path, MAX_FILES)
        except (PermissionError, NotACheckpoint) as error:
            problem = error.message if isinstance(error, NotACheckpoint) else os_reason(error)
            return Candidate(path.name, str(path), problem, 1, None, path, problem)
        identity = identify(path)
    except (OSError, CheckpointError):
        return None
    mark = f"{identity.size} {identity.mtime_ns} {status.st_ino}"
    modified = identity.mtime_ns / 1e9
    return Candidate(path.name, str(path), mark, identity.size, modified, path)


def _inside(folder: Path) -> list[Candidate]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name != INSIDE]
            paths = [Path(entry.path) for entry in visible if entry.name.endswith(FILE_ENDINGS) or entry.is_dir()]
    except OSError:
        return []
    return [candidate for path in paths if (candidate := look_at(path)) is not None]


def whole_folder(names: Collection[str], read: Callable[[str], bytes], shown: str) -> Sequence[str]:
    """Return the names of the weights in a folder with the files `names`, which `read` reads."""
    if (first := known_weights(names, shown)) is None:
        raise NotACheckpoint(f"it has none of {', '.join(FOLDER_FILES)} yet")
    if PART.fullmatch(first):
        return parts_of(names, shown)
    if not first.endswith(".index.json"):
        return [first]
    wanted = sorted(set(weight_map(read(first), first).values()))
    if missing := [name for name in wanted if name not in names]:
        raise NotACheckpoint(f"the folder lacks {', '.join(missing[:3])}")
    return wanted


class RemoteFolder:
    """Folder in a store, and its folder `checkpoints`. Objects are always complete; folders are inspected."""

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = parse_remote(uri.rstrip("/"), settings)
        if self.uri.scheme in HTTP:
            scheme = self.uri.scheme
            raise InvalidRequest(f"{uri} cannot be listed by {scheme}; watch a folder at s3://, gs:// or hf://")
        self._whole: dict[str, Candidate] = {}
        """Complete Hugging Face folders by address; they are not inspected again."""

    def __str__(self) -> str:
        return str(self.uri)

    def exists(self) -> bool:
        return True

    def list(self) -> Sequence[Candidate]:
        candidates: list[Candidate] = []
        for place in (self.uri, _below(self.uri, INSIDE)):
            try:
                files, folders = within(METADATA_SECONDS, place, ObjectSource(place).inside)
            except FileNotFoundError:
                continue
            for file in files:
                if file.name.endswith(FILE_ENDINGS):
                    uri, mark = str(_below(place, file.name)), f"{file.size} {file.etag}"
                    candidates.append(Candidate(file.name, uri, mark, file.size, None, None))
            candidates += [self._folder(_below(place, name)) for name in folders if name != INSIDE]
        return candidates

    def _folder(self, place: RemoteUri) -> Candidate:
        if (known := self._whole.get(str(place))) is not None:
            return known
        source = ObjectSource(place)
        candidate = Candidate(place.name, str(place), "", 1, None, None)
        try:
            files = within(METADATA_SECONDS, place, lambda: source.with_inner(*source.inside()))
            by_name = {file.name: file for file in files}
            whole_folder(by_name, lambda name: b"".join(source.read(by_name[name], 0)), str(place))
            identity = Listing(weights_of_folder(place, files), is_folder=True).identity
        except FileNotFoundError:
            return replace(candidate, problem="it is empty")
        except (NotACheckpoint, ShardedCheckpoint) as error:
            return replace(candidate, mark=str(Listing(files, is_folder=True).identity), problem=error.message)
        self._whole[str(place)] = replace(candidate, mark=str(identity), size=identity.size)
        return self._whole[str(place)]


def _below(uri: RemoteUri, name: str) -> RemoteUri:
    return replace(uri, path=f"{uri.path}/{name}")
