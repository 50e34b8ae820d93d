"""Folder of an object store or a hub that is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, Listing, RemoteFile, weights_of_folder, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest, NotACheckpoint, ShardedCheckpoint
from evalsvc.watch.completeness import whole_folder
from evalsvc.watch.local_folder import FILE_ENDINGS, INSIDE, Candidate


class RemoteFolder:
    """Folder in a store, and its folder `checkpoints`. Objects are always complete; folders are inspected."""

    def __init__(self, uri: str, settings: Settings) -> None:
        """Open the folder without a request."""
        self.uri = parse_remote(uri.rstrip("/"), settings)
        if self.uri.scheme in HTTP:
            raise InvalidRequest(
                f"{uri} cannot be listed by {self.uri.scheme}; watch a folder at s3://, gs:// or hf://"
            )
        self._whole: dict[str, Candidate] = {}
        """Complete Hugging Face folders by address; they are not inspected again."""

    def __str__(self) -> str:
        return str(self.uri)

    def exists(self) -> bool:
        return True

    def list(self) -> Sequence[Candidate]:
        """Return the candidates in the folder, or none if the folder does not exist yet."""
        candidates: list[Candidate] = []
        for place in (self.uri, _below(self.uri, INSIDE)):
            try:
                files, folders = within(METADATA_SECONDS, place, ObjectSource(place).inside)
            except FileNotFoundError:
                continue
            candidates += [_file(_below(place, file.name), file) for file in files if file.name.endswith(FILE_ENDINGS)]
            candidates += [self._folder(_below(place, name)) for name in folders if name != INSIDE]
        return candidates

    def _folder(self, place: RemoteUri) -> Candidate:
        if (known := self._whole.get(str(place))) is not None:
            return known
        source = ObjectSource(place)
        candidate = Candidate(place.name, str(place), "", 1, None, None, is_folder=True)
        try:
            files = within(METADATA_SECONDS, place, source.files)
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


def _file(place: RemoteUri, file: RemoteFile) -> Candidate:
    return Candidate(file.name, str(place), f"{file.size} {file.etag}", file.size, None, None, is_folder=False)
