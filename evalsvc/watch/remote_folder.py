"""What lies in a folder of an object store or a hub that is watched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from evalsvc.checkpoints.reference import FOLDER_FILES
from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import METADATA_SECONDS, Listing, RemoteFile, weights_of_folder, within
from evalsvc.checkpoints.remote.uri import HTTP, RemoteUri, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.watch.local_folder import FILE_ENDINGS, INSIDE, Candidate


class RemoteFolder:
    """A folder elsewhere, and `checkpoints` in it. What a store shows is complete, so only folders are looked into."""

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
            problem = _missing(source, files)
            if problem is not None:
                return replace(candidate, mark=str(Listing(files, is_folder=True).identity), problem=problem)
            listing = Listing(weights_of_folder(place, files), is_folder=True)
        except FileNotFoundError:
            return replace(candidate, problem="is empty")
        whole = replace(candidate, mark=str(listing.identity), size=listing.identity.size)
        self._whole[str(place)] = whole
        return whole


def _below(uri: RemoteUri, name: str) -> RemoteUri:
    return replace(uri, path=f"{uri.path}/{name}")


def _file(place: RemoteUri, file: RemoteFile) -> Candidate:
    return Candidate(file.name, str(place), f"{file.size} {file.etag}", file.size, None, None, is_folder=False)


def _missing(source: ObjectSource, files: Sequence[RemoteFile]) -> str | None:
    """What a folder does not have yet; None: it has everything."""
    by_name = {file.name: file for file in files}
    if ".metadata" in by_name or any(name.endswith(".distcp") for name in by_name):
        return "is a torch.distributed.checkpoint folder; make one file of it with dcp_to_torch"
    first = next((name for name in FOLDER_FILES if name in by_name), None)
    if first is None:
        return f"has none of {', '.join(FOLDER_FILES)} yet"
    if not first.endswith(".index.json"):
        return None
    try:
        index = json.loads(b"".join(source.read(by_name[first], 0)))
        wanted = {str(name) for name in index["weight_map"].values()}
    except EvalsvcError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {first} is damaged"
    missing = sorted(wanted - by_name.keys())
    return f"{', '.join(missing[:3])} is not there yet" if missing else None
