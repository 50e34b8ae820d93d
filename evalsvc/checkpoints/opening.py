"""Locating the checkpoints that a `submitter` names, and reading them from exactly the files that were checked.

A posted path is checked without telling what lies outside the roots. Later, a name on the path may be exchanged. So
every file is opened first and then checked, see `files.opened`, and readers get a name in a private folder that leads
to the open file: hashing and loading read the same file.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from evalsvc.checkpoints.formats import NO_ARCHIVE, images_among, is_archive, known_weights, names_in
from evalsvc.checkpoints.reference import MAX_FILES, CheckpointRef, entries_of, files_of, with_files
from evalsvc.config import Settings
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointGone,
    CheckpointNotAllowed,
    CheckpointNotFound,
    EvalsvcError,
    InvalidData,
    NotACheckpoint,
    os_reason,
)
from evalsvc.families.family import MAX_JSON_FILES, STEP_FILES, is_file
from evalsvc.families.open_lm import recorded_model
from evalsvc.files.opened import Allow, ReadRule, open_checked, open_file, path_of
from evalsvc.spec.images import ARCHIVES

NEIGHBOURS = ("params.txt", "config.json", *STEP_FILES)
"""Files next to a checkpoint that are read by name and must lie inside the roots. Other JSON files outside the roots
are ignored."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

NOT_REGULAR = "is not a regular file or folder on a disk; use a checkpoint file or a Hugging Face folder"

MAX_NEIGHBOURS = 100_000


def local_path(uri: str) -> Path:
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # e.g. for an invalid IPv6 address
        raise CheckpointNotAllowed(f"{uri}: is not a uri ({os_reason(error)}); use a path or a file:// uri") from None
    if "::" in uri or "\0" in uri or (parts.scheme and parts.scheme != "file"):
        raise CheckpointNotAllowed(
            f"{uri}: the scheme is not allowed; use a path or a file:// uri that the service and its workers can read"
        )
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise CheckpointNotAllowed(f"{uri}: names the host {parts.netloc!r}; only this machine's files can be read")
    if parts.scheme == "file" and (parts.query or parts.fragment):
        raise CheckpointNotAllowed(f"{uri}: holds '?' or '#', which a path in a uri writes as %3F and %23")
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
    if not path.is_absolute():
        raise CheckpointNotAllowed(f"{uri}: is a relative path; use an absolute path")
    return path


def checkpoint_rule(settings: Settings, *copies: Path) -> ReadRule:
    """Return the rule for files of posted checkpoints, and of the service's own copies in the folders `copies`."""
    return ReadRule((*settings.root_paths, *copies), settings.private_paths, error=CheckpointNotAllowed)


def locate(uri: str, rule: ReadRule) -> Path:
    """Return the existing file or folder that `uri` names, with links resolved. Messages about a path outside the roots
    do not tell whether the path exists, nor where a link leads."""
    resolved = _resolve_inside(local_path(uri), rule, uri)
    try:
        mode = resolved.stat().st_mode
    except (OSError, ValueError) as error:
        raise CheckpointNotFound(f"{uri}: {os_reason(error)}; post the checkpoint when the file is complete") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointNotAllowed(f"{uri}: {NOT_REGULAR}")
    if not os.access(resolved, os.R_OK):
        raise CheckpointNotFound(f"{uri}: this process may not read the file; change its permissions")
    try:
        for path in entries_of(resolved, MAX_FILES) if resolved.is_dir() else ():
            rule(Path(os.path.realpath(path)), str(path))
    except OSError as error:
        raise CheckpointNotFound(f"{uri}: {os_reason(error)} in it; change its permissions, or post it again") from None
    return resolved


def is_images(path: Path, rule: Allow) -> bool:
    """Return whether a file or folder is images and no weights, by names and the first bytes of an archive."""
    file = path
    if path.is_dir():
        names = {entry.relative_to(path).as_posix() for entry in entries_of(path, MAX_FILES)}
        is_weights = known_weights(names_in(path), str(path)) is not None
        archive = None if is_weights else images_among(names, str(path))
        if not archive:
            return archive is not None
        file = path / archive
    elif path.suffix.lower() not in (*ARCHIVES, *NO_ARCHIVE):
        return False
    with open_file(file, "file", rule).stream as stream:
        return is_archive(stream, file.name, str(file))


def _resolve_inside(path: Path, rule: ReadRule, shown: str) -> Path:
    current = Path(path.anchor)
    for part in (*path.parts[1:], None):
        if part is not None and part != "..":
            current /= part
            continue
        with suppress(OSError, ValueError):  # an impossible file name
            current = Path(os.path.realpath(current))
        # Check before a step up as well: otherwise the error would tell whether a folder outside exists.
        rule(current, shown)
        current = current if part is None else current.parent
    return current


@contextmanager
def opened_weights(path: Path, allow: Allow, companions: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a stable path to the weights of a network, next to which are only the files in `companions`, and those that
    an index names; messages show the posted path."""
    with ExitStack() as stack:
        files = _OpenFiles(stack)
        try:
            pinned = files.pin_weights(path, allow)
            for name in () if path.is_dir() else companions:
                if (path.parent / name).is_file():
                    files.pin(path.parent / name, pinned.parent / name, allow)
        except OSError as error:
            raise InvalidData(f"{path} cannot be read: {os_reason(error)}; check the path") from None
        with files.posted_names():
            yield pinned


@contextmanager
def opened(reference: CheckpointRef) -> Iterator[CheckpointRef]:
    """Yield the reference with stable paths; messages show the posted paths. Files that a configuration is read from
    are available too: params.txt and JSON in the folder and its parent, except JSON files outside the roots."""
    with ExitStack() as stack:
        files = _OpenFiles(stack)
        with files.posted_names(reference):
            yield with_files(reference, files.pinned)
        files.require_unchanged(reference)


@contextmanager
def opened_neighbours(path: Path, rule: ReadRule) -> Iterator[Path]:
    """Yield a stable path next to which are the files of a checkpoint's configuration only; see `opened`."""
    reference = CheckpointRef(str(path), label="the checkpoint")
    with ExitStack() as stack:
        files = _OpenFiles(stack)
        with files.posted_names(reference):
            with _translated(reference):
                folder, private = files.private_folder(path)
                files.pin_neighbours(folder, private, rule)
            yield private if path.is_dir() else private / path.name


@contextmanager
def _translated(reference: CheckpointRef) -> Iterator[None]:
    path, label = reference.path, reference.label
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointGone(f"{label}: {error.filename} was deleted while it was opened; post it again") from None
    except OSError as error:
        raise NotACheckpoint(f"{label}: {path} cannot be read: {os_reason(error)}; check its permissions") from None
    except CheckpointError as error:
        raise type(error)(f"{label}: {error.message}") from None


class _OpenFiles:
    """Files that stay open until `stack` ends, each under a private name that leads to the open file."""

    def __init__(self, stack: ExitStack) -> None:
        self.names: dict[str, str] = {}
        """Posted names by private name."""
        self._folder = Path(stack.enter_context(TemporaryDirectory(prefix="evalsvc-")))
        self._states: dict[int, tuple[Path, os.stat_result]] = {}
        """Path of each file, and its state when it was opened, by descriptor."""
        self._stack = stack

    def pin(self, file: Path, name: Path, allow: Allow) -> None:
        if name.is_symlink():
            return
        descriptor, real = open_checked(file, allow)
        self._stack.callback(os.close, descriptor)
        self._states[descriptor] = file, os.fstat(descriptor)
        if not stat.S_ISREG(self._states[descriptor][1].st_mode):  # nor a folder, whose content nobody has checked
            raise CheckpointNotAllowed(f"{file}: {NOT_REGULAR}")
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(path_of(descriptor, real))

    def private_folder(self, path: Path) -> tuple[Path, Path]:
        """Return the folder of a file or folder, and an empty private folder that stands for it in names."""
        private = self._folder / str(len(self.names)) / "content"
        private.mkdir(parents=True)
        folder = path if path.is_dir() else path.parent
        self.names |= {str(private): str(folder), str(private.parent): str(folder.parent)}
        return folder, private

    def pin_weights(self, path: Path, allow: Allow) -> Path:
        folder, private = self.private_folder(path)
        if path.is_dir():
            files, pinned = files_of(path, MAX_FILES), private
        else:
            named = [folder / name for name in _names(folder, WEIGHTS)[:MAX_FILES]] if path.suffix == ".json" else []
            files, pinned = [path, *filter(_is_readable, named)], private / path.name
        allow_open_files(len(files))
        for file in files:
            self.pin(file, private / file.relative_to(folder), allow)
        return pinned

    def pinned(self, reference: CheckpointRef) -> CheckpointRef:
        path = Path(reference.path)
        with _translated(reference):
            private = self.pin_weights(path, reference.rule)
            folder, private_folder = (path, private) if path.is_dir() else (path.parent, private.parent)
            self.pin_neighbours(folder, private_folder, reference.rule)
        if reference.source is not None:
            # Messages show a fetched checkpoint by its address, not by the names in the cache.
            self.names[str(private)] = reference.source
        return replace(reference, path=str(private))

    def pin_neighbours(self, folder: Path, private: Path, rule: ReadRule) -> None:
        places = ((folder, private), (folder.parent, private.parent))
        for place, private_place in places:
            for name in NEIGHBOURS:
                if _is_readable(place / name):
                    self.pin(place / name, private_place / name, rule)
        model = f"{recorded_model(private)}.json"
        for place, private_place in places:
            names = sorted(_names(place, (".json",)), key=lambda name: name != model)
            for name in names[: MAX_JSON_FILES + 1]:  # of more than the limit none is read, except the model's
                if _is_readable(place / name):
                    with suppress(CheckpointNotAllowed, FileNotFoundError):
                        self.pin(place / name, private_place / name, rule)
                if len(names) > MAX_JSON_FILES and not (private_place / name).is_symlink():
                    (private_place / name).symlink_to("unreadable")  # counts, or the search would pass over the limit

    def require_unchanged(self, reference: CheckpointRef) -> None:
        for descriptor, (file, before) in self._states.items():
            now = os.fstat(descriptor)
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise CheckpointChanged(
                    f"{reference.label}: {reference.source or file} was changed while it was read; post the checkpoint "
                    "again with replace=true when it is complete"
                )

    @contextmanager
    def posted_names(self, reference: CheckpointRef | None = None) -> Iterator[None]:
        """Replace private names in messages by posted names; a label that is the path itself is not said twice."""
        try:
            yield
        except EvalsvcError as error:
            message = error.message
            for private in sorted(self.names, key=len, reverse=True):
                message = message.replace(private, self.names[private])
            if reference is not None and os.path.realpath(reference.label) == reference.path:
                start = f"{reference.label}: "
                message = message[len(start) * message.startswith(start + reference.path) :]
            raise type(error)(message) from error


def _names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, MAX_NEIGHBOURS) if entry.name.endswith(endings))
    except OSError:  # a folder that can be traversed but not listed
        return []


def _is_readable(path: Path) -> bool:
    return is_file(path) and os.access(path, os.R_OK)


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as permitted, so that `count` more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 512:
        wanted = count + 1024
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))
