"""Fetching posted remote checkpoints to this machine."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from evalsvc.checkpoints.copies import Cache, Copy, NoRoom
from evalsvc.checkpoints.formats import refuse_part, weights_at
from evalsvc.checkpoints.opening import checkpoint_rule, is_images, locate
from evalsvc.checkpoints.reference import (
    CheckpointRef,
    Identity,
    check_sha256,
    hash_files,
    identify,
    named,
    parents_of,
    with_files,
)
from evalsvc.checkpoints.remote.http import HttpSource
from evalsvc.checkpoints.remote.objects import ObjectSource
from evalsvc.checkpoints.remote.source import RemoteFile
from evalsvc.checkpoints.remote.uri import HTTP, is_remote, parse_remote
from evalsvc.config import Settings
from evalsvc.errors import (
    CacheFull,
    CheckpointChanged,
    CheckpointGone,
    CheckpointNotAllowed,
    CheckpointNotFound,
    SourceUnreachable,
    os_reason,
)

Report = Callable[[int], None]

Source = HttpSource | ObjectSource
"""A file or folder in a store. Its methods raise FileNotFoundError, CheckpointNotAllowed and SourceUnreachable."""

ROOM_POLL = 1.0
"""Seconds between two checks of a cache that is full of copies in use."""


def source_of(uri: str, settings: Settings) -> Source:
    parsed = parse_remote(uri, settings)
    if parsed.scheme in HTTP:
        return HttpSource(parsed, settings.allowed_schemes, seconds=settings.shard_deadline)
    return ObjectSource(parsed)


def locate_checkpoint(uri: str, settings: Settings) -> tuple[str, Identity]:
    """Return (path, identity) of a local checkpoint with links resolved, or (address, identity) of a remote one."""
    if is_remote(uri):
        address = str(parse_remote(uri, settings))
        refuse_part([address.rpartition("/")[2]], address)
        try:
            return address, source_of(address, settings).list().identity
        except FileNotFoundError:
            raise CheckpointNotFound(f"{address} does not exist; post the checkpoint when it is complete") from None
    if "file" not in settings.allowed_schemes:
        raise CheckpointNotAllowed(
            f"{uri}: is a local file, which EVALSVC_SCHEMES does not allow; post a remote checkpoint"
        )
    path = locate(uri, checkpoint_rule(settings))
    if not is_images(path, checkpoint_rule(settings)):
        weights_at(path, uri)
    return str(path), identify(path)


@contextmanager
def fetched(
    references: Sequence[CheckpointRef], settings: Settings, report: Report
) -> Iterator[Sequence[CheckpointRef]]:
    """Yield the references with remote checkpoints in the cache until the context ends; `report` may end the wait."""
    cache = Cache(settings.cache_path, settings.cache_bytes)
    leaves = [leaf for reference in references for leaf in parents_of(reference) or (reference,)]
    wanted = {_copy(cache, leaf): leaf for leaf in leaves if is_remote(leaf.path)}
    if not wanted:
        yield references
        return
    total = sum(copy.size for copy in wanted)
    if total > settings.cache_bytes:
        labels = [leaf.label for leaf in wanted.values()]
        what = labels[0] if len(labels) == 1 else f"{len(labels)} checkpoints that are needed together"
        raise CacheFull(
            f"{what}: {total:,} bytes exceed EVALSVC_CACHE_BYTES, which is {settings.cache_bytes:,}; raise the limit "
            "on every machine with workers"
        )
    try:
        with _all_held(cache, wanted, settings, report):
            yield [with_files(reference, lambda file: _placed(file, cache)) for reference in references]
    except CheckpointChanged:
        # The cached copy is not, or no longer, what was posted: the next attempt fetches the checkpoint again.
        for copy in wanted:
            cache.drop(copy)
        raise


@contextmanager
def _all_held(cache: Cache, wanted: Mapping[Copy, CheckpointRef], settings: Settings, report: Report) -> Iterator[None]:
    """Hold all copies or none: otherwise two processes could wait forever for copies that the other one holds."""

    def fill(leaf: CheckpointRef, folder: Path) -> None:
        fetch_posted(leaf, folder / name_of(leaf.path), settings, report)

    while True:
        with ExitStack() as stack:
            try:
                for copy, leaf in wanted.items():
                    stack.enter_context(cache.held(copy, partial(fill, leaf), lambda: report(0)))
            except NoRoom:
                stack.close()
                report(0)
                time.sleep(ROOM_POLL * (0.5 + random.random()))
                continue
            yield
            return


def _fetch_file(source: Source, file: RemoteFile, target: Path, report: Report, shown: str) -> None:
    begun = target.stat().st_size if target.exists() else 0
    if begun > file.size:
        target.unlink()
        begun = 0
    try:
        with target.open("ab") as stream:
            for block in source.read(file, begun) if begun < file.size else ():
                begun += len(block)
                if begun > file.size:
                    raise CheckpointChanged(
                        f"{shown} is longer than when it was posted ({file.size:,} bytes); post it again"
                    )
                stream.write(block)
                report(0)
            stream.flush()
            os.fsync(stream.fileno())
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = os_reason(error)
        raise CacheFull(
            f"{shown}: cannot be written to {target.parent} ({reason}); free disk space, or move EVALSVC_CACHE"
        ) from None
    if begun < file.size:
        raise SourceUnreachable(f"{shown}: the download ended after {begun:,} of {file.size:,} bytes; try again")
    os.utime(target, ns=(0, 0))


def fetch_posted(reference: CheckpointRef, target: Path, settings: Settings, report: Report) -> None:
    """Fetch a posted checkpoint to `target`, resuming partial files."""
    source = source_of(reference.path, settings)
    with named(reference):
        try:
            listing = source.list()
            if listing.identity != reference.identity:
                raise CheckpointChanged(
                    f"{reference.path} has {listing.identity}, but was posted with {reference.identity}; "
                    "post it again with replace=true"
                )
            folder = target if listing.is_folder else target.parent
            folder.mkdir(parents=True, exist_ok=True)
            for file in listing.files:
                place = folder / file.name if listing.is_folder else target
                place.parent.mkdir(exist_ok=True)
                _fetch_file(source, file, place, report, reference.path)
            if source.list() != listing:
                raise CheckpointChanged(
                    f"{reference.path} was replaced while it was fetched; post it again with replace=true"
                )
        except FileNotFoundError:
            raise CheckpointGone(
                f"{reference.path} was deleted before it was evaluated; "
                "post it again, with spool=copy if the training loop deletes its checkpoints"
            ) from None
    if reference.sha256 is not None:
        check_sha256(reference, hash_files(target))


def name_of(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2].partition("@")[0]


def _copy(cache: Cache, leaf: CheckpointRef) -> Copy:
    assert leaf.identity is not None, "a remote checkpoint is identified before it is fetched"
    return cache.copy(leaf.path, leaf.identity)


def _placed(reference: CheckpointRef, cache: Cache) -> CheckpointRef:
    # The identity of a copy is the same whenever it is fetched.
    if not is_remote(reference.path):
        return reference
    copy = _copy(cache, reference)
    path = str(copy.folder / name_of(reference.path))
    return replace(reference, path=path, identity=Identity(copy.size, 0), source=reference.path)
