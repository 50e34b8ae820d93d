"""Object stores and hubs, read by fsspec: s3://, gs://, hf://, and every other scheme that the operator allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import fsspec

from evalsvc.checkpoints.reference import MAX_FILES, too_many_files
from evalsvc.checkpoints.remote.source import BLOCK, METADATA_SECONDS, Listing, RemoteFile, weights_of_folder, within
from evalsvc.checkpoints.remote.uri import RemoteUri
from evalsvc.errors import CheckpointNotAllowed, EvalsvcError, MissingPackage, SourceUnreachable
from evalsvc.families.family import LISTS
from evalsvc.installation import missing_package

EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "hf": ("huggingface_hub", "hf")}

OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "default_fill_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}},
    },
    "gs": {"use_listings_cache": False},
    "hf": {"use_listings_cache": False},
}

SHARED = ("s3", "gs")
"""Schemes whose connections are slow to open and thread-safe."""

ACCESS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role that may read it",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or an account that may read it",
    "hf": "HF_TOKEN of an account that may read it",
}

TAGS = ("ETag", "etag", "blob_id", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "created")
"""Fields in which stores report the version of an object, the best first."""

NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")


class ObjectSource:
    """A file or folder that fsspec reads. The first request opens the connection."""

    def __init__(self, uri: RemoteUri) -> None:
        self.uri = uri
        self._path = f"{uri.scheme}://{uri.place}/{uri.path}"
        if uri.scheme == "hf" and uri.revision is not None:
            repository, _, inside = uri.path.partition("/")
            self._path = f"hf://{uri.place}/{repository}@{uri.revision.replace('/', '%2F')}/{inside}"

    def list(self) -> Listing:
        with _translated(self.uri):
            return within(METADATA_SECONDS, self.uri, self._list)

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        with _translated(self.uri):
            filesystem = _filesystem(self.uri.scheme)
            with filesystem.open(file.path, "rb", block_size=BLOCK) as stream:
                stream.seek(offset)
                while block := stream.read(BLOCK):
                    yield block

    def inside(self) -> tuple[Sequence[RemoteFile], Sequence[str]]:
        """Return all files in this folder, and the names of its subfolders."""
        with _translated(self.uri):
            entries = _filesystem(self.uri.scheme).ls(self._path, detail=True)
        named = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries]
        files = [
            _file(name, f"{self._path.rstrip('/')}/{name}", entry)
            for name, entry in named
            if entry["type"] == "file" and name and not entry["name"].endswith("/")
        ]
        return files, [name for name, entry in named if entry["type"] == "directory" and name]

    def with_inner(self, files: Sequence[RemoteFile], folders: Sequence[str]) -> Sequence[RemoteFile]:
        """Return the files and those of the folder of torch.distributed.checkpoint inside this step's folder."""
        inner = [name for name in folders if any(path.startswith(f"{name}/") for path in LISTS)]
        below = [
            replace(file, name=f"{name}/{file.name}")
            for name in inner
            for file in ObjectSource(replace(self.uri, path=f"{self.uri.path.rstrip('/')}/{name}")).inside()[0]
        ]
        return [*files, *below]

    def _list(self) -> Listing:
        info = _filesystem(self.uri.scheme).info(self._path)
        if info["type"] == "file":
            return Listing([_file(self.uri.name, self._path, info)], is_folder=False)
        files = self.with_inner(*self.inside())
        if len(files) > MAX_FILES:
            raise too_many_files(self.uri, MAX_FILES)
        if not files:
            raise FileNotFoundError(self._path)
        return Listing(weights_of_folder(self.uri, files), is_folder=True)


def _file(name: str, path: str, found: Mapping[str, Any]) -> RemoteFile:
    digest = (found.get("lfs") or {}).get("sha256")
    tag = digest or next((found[key] for key in TAGS if found.get(key) is not None), "")
    return RemoteFile(name, int(found["size"]), path, str(tag).strip('"'))


def _filesystem(scheme: str) -> Any:
    return _shared_filesystem(scheme) if scheme in SHARED else _new_filesystem(scheme)


def _new_filesystem(scheme: str) -> Any:
    """Open a file system without fsspec's cache, which would keep one per thread with its listings."""
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **OPTIONS.get(scheme, {}))
    except ImportError:
        if scheme in EXTRAS:
            package, extra = EXTRAS[scheme]
            raise missing_package(package, f"a checkpoint under {scheme}://", extra) from None
        raise MissingPackage(
            f"a checkpoint under {scheme}:// needs a package that is not installed; install the package that fsspec "
            "names for this scheme"
        ) from None
    except ValueError:
        raise CheckpointNotAllowed(
            f"fsspec does not know the scheme {scheme!r} of EVALSVC_SCHEMES; correct EVALSVC_SCHEMES"
        ) from None


_shared_filesystem = cache(_new_filesystem)


@contextmanager
def _translated(uri: RemoteUri) -> Iterator[None]:
    """Translate every error of a store, without the store's message, which may hold addresses and keys."""
    try:
        yield
    except (EvalsvcError, FileNotFoundError, GeneratorExit):
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, PermissionError) or kinds & set(NO_ACCESS):
            access = ACCESS.get(uri.scheme, "the credentials that its store asks for")
            raise CheckpointNotAllowed(
                f"{uri}: its store refuses access; give the service and its workers {access}"
            ) from None
        raise SourceUnreachable(
            f"{uri}: its store cannot be read ({type(error).__name__}); check the network and the store, and try again"
        ) from error
