"""Reading checkpoints from exactly the files that were checked, even if their names are changed in the meantime.

Between the check of a path and its opening, a file or folder on the path may be replaced by a link. So every file is
opened first, the kernel's path of the open file is checked against the allowed roots, and readers get a name in a
private folder that leads to the open file. Hashing and loading then read the same file.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from evalsvc.checkpoints.reference import (
    MAX_FILES,
    CheckpointRef,
    Virtual,
    files_of,
    locate,
    parents_of,
    require_inside,
)
from evalsvc.errors import (
    CheckpointChanged,
    CheckpointError,
    CheckpointGone,
    CheckpointNotAllowed,
    EvalsvcError,
    InvalidData,
    NotACheckpoint,
    os_reason,
)
from evalsvc.families.config_files import MAX_JSON_FILES
from evalsvc.families.open_lm_files import recorded_model
from evalsvc.files.opened import OPEN_FILES, Allow, anywhere, real_path

NEIGHBOURS = ("params.txt", "config.json", ".metadata")
"""Files next to a checkpoint that are read by name and must lie inside the roots. Other JSON files outside the roots
are ignored."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

MAX_NEIGHBOURS = 100_000
"""Maximum number of names that are searched for files next to a checkpoint."""


@contextmanager
def opened_weights(path: Path, allow: Allow, companions: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a stable path to the file or folder of a network's weights; messages show the posted path.

    Only the neighbouring files in `companions`, and the files that an index names, are available next to the path.

    Raises:
        InvalidData: a file is missing or cannot be read, or `allow` raises.
        NotACheckpoint: the folder has more than MAX_FILES files.
    """
    if not OPEN_FILES.is_dir():
        for file in files_of(path, MAX_FILES):
            allow(file.resolve(), str(file))
        yield path
        return
    with ExitStack() as stack:
        files = _Open(stack, allow)
        folder_copy = files.folder / "content"
        folder_copy.mkdir()
        try:
            pinned = files.pin_weights(path, folder_copy, (".json", *WEIGHTS))
            for name in () if path.is_dir() else companions:
                if (path.parent / name).is_file():
                    files.pin(path.parent / name, folder_copy / name)
        except OSError as error:
            raise InvalidData(f"{path} cannot be read: {os_reason(error)}; check the path") from None
        with _posted_names(files):
            yield pinned


class _Open:
    """Files that stay open until `stack` ends, each under a private name."""

    def __init__(self, stack: ExitStack, allow: Allow) -> None:
        self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="evalsvc-")))
        self.names: dict[str, str] = {}
        """Posted names by private folder."""
        self.states: dict[int, tuple[Path, os.stat_result]] = {}
        """Path of each file, and its state when it was opened, by descriptor."""
        self.allow = allow
        self._stack = stack

    def pin_weights(self, path: Path, folder_copy: Path, index_endings: tuple[str, ...]) -> Path:
        """Open weights under names in `folder_copy`, and the files next to an index; return the name."""
        folder = path if path.is_dir() else path.parent
        self.names[str(folder_copy)] = str(folder)
        files = files_of(path, MAX_FILES) if path.is_dir() else [path]
        allow_open_files(len(files))
        for file in files:
            self.pin(file, folder_copy / file.relative_to(folder))
        if path.is_dir():
            return folder_copy
        if _is_json(folder_copy / path.name):
            for file in _existing(folder, _names(folder, index_endings)[:MAX_FILES]):
                self.pin(file, folder_copy / file.name)
        return folder_copy / path.name

    def pin(self, file: Path, name: Path) -> None:
        """Open a file that `allow` permits, and make `name` lead to it."""
        if name.is_symlink():
            return
        if not stat.S_ISREG(file.stat().st_mode):
            self.allow(file.resolve(), str(file))
            return
        # O_NONBLOCK: if a pipe has replaced the file, opening does not wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        real = real_path(file, descriptor)
        self.states[descriptor] = file, os.fstat(descriptor)
        if real.exists():  # a file that was deleted since it was opened keeps its content
            self.allow(real, str(file))
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(OPEN_FILES / str(descriptor))


@contextmanager
def opened(reference: CheckpointRef) -> Iterator[CheckpointRef]:
    """Yield the reference with a stable path, or stable paths of its parents; messages show the posted path.

    Files that a configuration is read from are available as well: params.txt and JSON in the folder and its parent,
    except JSON files outside the roots.

    Raises:
        CheckpointNotAllowed: a file lies outside `reference.roots`, or is not on a disk.
        CheckpointGone: the file was deleted.
        CheckpointChanged: the file was changed while it was read.
    """
    if not OPEN_FILES.is_dir():
        # Without /proc the kernel does not tell which file is open, so only the paths can be checked.
        for leaf in parents_of(reference) or (reference,):
            locate(leaf.path, leaf.roots, leaf.closed)
        yield reference
        return
    with ExitStack() as stack:
        files = _Open(stack, anywhere)
        with _posted_names(files, reference):
            yield _pinned(reference, files)
        _require_unchanged(reference, files)


def _pinned(reference: CheckpointRef, files: _Open) -> CheckpointRef:
    if reference.virtual is not None:
        parents = {name: _pinned(parent, files) for name, parent in reference.virtual.parents.items()}
        return replace(reference, virtual=Virtual(reference.virtual.expression, parents))
    path = Path(reference.path)
    parent_copy = files.folder / str(len(files.names))
    folder_copy = parent_copy / "content"
    folder_copy.mkdir(parents=True)
    folder = path if path.is_dir() else path.parent
    files.names[str(parent_copy)] = str(folder.parent)
    files.allow = partial(_require_inside, reference)
    try:
        pinned = files.pin_weights(path, folder_copy, WEIGHTS)
        for place, private in {folder: folder_copy, folder.parent: parent_copy}.items():
            for file in _existing(place, NEIGHBOURS):
                files.pin(file, private / file.name)
        model = recorded_model(pinned)
        for place, private in {folder: folder_copy, folder.parent: parent_copy}.items():
            for file in _jsons(place, f"{model}.json"):
                with suppress(CheckpointNotAllowed, FileNotFoundError):  # outside the roots: ignored
                    files.pin(file, private / file.name)
    except FileNotFoundError as error:
        raise CheckpointGone(
            f"{reference.label}: {error.filename} was deleted while it was opened; post it again"
        ) from None
    except OSError as error:
        raise NotACheckpoint(
            f"{reference.label}: {path} cannot be read: {os_reason(error)}; check its permissions"
        ) from None
    except CheckpointError as error:
        raise type(error)(f"{reference.label}: {error.message}") from None
    if reference.source is not None:
        # Messages show a fetched checkpoint by its address, not by the names in the cache.
        files.names[str(folder_copy / path.name)] = reference.source
    return replace(reference, path=str(pinned))


def _require_inside(reference: CheckpointRef, real: Path, shown: str) -> None:
    require_inside(real, reference.roots, shown, reference.closed)


def _jsons(folder: Path, model: str) -> Iterator[Path]:
    """Yield JSON files next to a checkpoint, that of `model` first, and at most one more than the limit."""
    names = sorted(_names(folder, (".json",)), key=lambda name: (name != model, name))
    return _existing(folder, names[: MAX_JSON_FILES + 1])


def _existing(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        if _is_readable(folder / name):
            yield folder / name


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a link into a folder without permission
        return False


def _names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, MAX_NEIGHBOURS) if entry.name.endswith(endings))
    except OSError:  # a folder that can be traversed but not listed
        return []


def _is_json(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16).lstrip().startswith(b"{")


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as permitted, so that `count` more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 512:
        wanted = count + 1024
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))


def _require_unchanged(reference: CheckpointRef, files: _Open) -> None:
    """Raise CheckpointChanged if a file was written to. A change that restores the modification time still changes that
    of the inode, unless a link was added or removed."""
    for descriptor, (file, before) in files.states.items():
        now = os.fstat(descriptor)
        content = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        inode = now.st_ctime_ns == before.st_ctime_ns or now.st_nlink != before.st_nlink
        if not content or not inode:
            raise CheckpointChanged(
                f"{reference.label}: {reference.source or file} was changed while it was read; post the checkpoint "
                "again with replace=true when it is complete"
            )


@contextmanager
def _posted_names(files: _Open, reference: CheckpointRef | None = None) -> Iterator[None]:
    """Replace private names in messages by posted names; a label that is the path itself is not said twice."""
    try:
        yield
    except EvalsvcError as error:
        message = _with_posted_names(error.message, files)
        if reference is not None and os.path.realpath(reference.label) == reference.path:
            start = f"{reference.label}: "
            message = message[len(start) * message.startswith(start + reference.path) :]
        raise type(error)(message) from error


def _with_posted_names(message: str, files: _Open) -> str:
    for private in sorted(files.names, key=len, reverse=True):
        message = message.replace(private, files.names[private])
    return message
