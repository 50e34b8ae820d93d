"""What lies in a folder of an object store or a hub that is watched."""

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
    """A folder in a store, and `checkpoints` in it. An object is complete; only folders are looked into."""

    def __init__(self, uri: str, settings: Settings) -> None:
        """Raises CheckpointNotAllowed, see `parse_remote`; InvalidRequest: what is there cannot be listed."""
        self.uri = parse_remote(uri.rstrip("/"), settings)
        if self.uri.scheme in HTTP:
            raise InvalidRequest(f"{uri}: {self.uri.scheme} has no folders to list; watch s3://, gs:// or hf://")
        self._whole: dict[str, Candidate] = {}
        """By address, the Hugging Face folders that have all their files: they are not looked into again."""

    def __str__(self) -> str:
        return str(self.uri)

    def exists(self) -> bool:
        return True

    def list(self) -> Sequence[Candidate]:
        """What is there; nothing where the folder is not there yet.

        Raises:
            SourceUnreachable, CheckpointNotAllowed, MissingPackage: as posts of such addresses do.
        """
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
