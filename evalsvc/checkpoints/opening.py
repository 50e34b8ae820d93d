"""Reading checkpoints from the very files that were checked, whatever becomes of their names meanwhile.

Between the look at a path and its opening, a link may be put in the place of a file or folder on the way. So every
file is opened first; what the kernel says of the open file is held against the allowed roots; and whoever reads it gets
a name in a private folder that leads to the open file. Hashing and loading then read one and the same file.
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
from evalsvc.files.opened import OPEN_FILES, Allow, anywhere, real_path
from evalsvc.spec.model_config import MAX_BESIDE, recorded_model

NEIGHBOURS = ("params.txt", "config.json", ".metadata")
"""Files next to a checkpoint that are read by name, and may not lead out of the roots; other JSON files that lead out
are passed over."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

MAX_NEIGHBOURS = 100_000
"""How many names are looked at for files next to a checkpoint."""


@contextmanager
def opened_weights(path: Path, allow: Allow, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Give the file or folder of a network's weights a path that stays what it is now; messages have the posted one.

    Of the files next to a file, only those named in `beside` are there, and the files that an index names.

    Raises:
        InvalidData: a file is missing or cannot be read; or what `allow` raises.
        NotACheckpoint: the folder has more than MAX_FILES files.
    """
    if not OPEN_FILES.is_dir():
        for file in files_of(path, MAX_FILES):
            allow(file.resolve(), str(file))
        yield path
        return
    with ExitStack() as stack:
        files = _Open(stack, allow)
        here = files.folder / "here"
        here.mkdir()
        try:
            pinned = files.pin_weights(path, here, (".json", *WEIGHTS))
            for name in () if path.is_dir() else beside:
                if (path.parent / name).is_file():
                    files.pin(path.parent / name, here / name)
        except OSError as error:
            raise InvalidData(f"{path} cannot be read: {os_reason(error)}; check the path") from None
        with _posted_names(files):
            yield pinned


class _Open:
    """Files that are open until `stack` ends, each under a private name."""

    def __init__(self, stack: ExitStack, allow: Allow) -> None:
        self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="evalsvc-")))
        self.names: dict[str, str] = {}
        """What private folders stand for."""
        self.stats: dict[int, os.stat_result] = {}
        """By descriptor, what each file was when it was opened."""
        self.allow = allow
        self._stack = stack

    def pin_weights(self, path: Path, here: Path, beside_index: tuple[str, ...]) -> Path:
        """Open a file or folder of weights under names in `here`, and what lies next to an index; return its name."""
        folder = path if path.is_dir() else path.parent
        self.names[str(here)] = str(folder)
        files = files_of(path, MAX_FILES) if path.is_dir() else [path]
        allow_open_files(len(files))
        for file in files:
            self.pin(file, here / file.relative_to(folder))
        if path.is_dir():
            return here
        if _is_json(here / path.name):
            for file in _existing(folder, _names(folder, beside_index)[:MAX_FILES]):
                self.pin(file, here / file.name)
        return here / path.name

    def pin(self, file: Path, name: Path) -> None:
        """Open a file that `allow` allows, and have `name` lead to it."""
        if name.is_symlink():
            return
        if not stat.S_ISREG(file.stat().st_mode):
            self.allow(file.resolve(), str(file))
            return
        # Should a pipe have taken its place since, opening does not wait for somebody who writes.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        real = real_path(file, descriptor)
        self.stats[descriptor] = os.fstat(descriptor)
        if real.exists():  # deleted since it was opened, it is still what it was
            self.allow(real, str(file))
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(OPEN_FILES / str(descriptor))


@contextmanager
def opened(reference: CheckpointRef) -> Iterator[CheckpointRef]:
    """The reference with a path, or its parents' paths, that stays what it is now; messages have the posted one.

    What a configuration is read from is there as well: params.txt and JSON in the folder and one above. JSON files
    that lead out of the roots are not.

    Raises:
        CheckpointNotAllowed: a file that is read lies outside `reference.roots`, or on no disk.
        CheckpointGone: it is not there any more.
        CheckpointChanged: the file was written to meanwhile.
    """
    if not OPEN_FILES.is_dir():
        # Without the kernel's word for what is open, the paths are all that can be asked.
        for leaf in parents_of(reference) or (reference,):
            locate(leaf.path, leaf.roots, leaf.closed)
        yield reference
        return
    with ExitStack() as stack:
        files = _Open(stack, anywhere)
        pinned = _pinned(reference, files)
        with _posted_names(files):
            yield pinned
        _require_unchanged(reference, files)


def _pinned(reference: CheckpointRef, files: _Open) -> CheckpointRef:
    if reference.virtual is not None:
        parents = {name: _pinned(parent, files) for name, parent in reference.virtual.parents.items()}
        return replace(reference, virtual=Virtual(reference.virtual.expression, parents))
    path = Path(reference.path)
    above = files.folder / str(len(files.names))
    here = above / "here"
    here.mkdir(parents=True)
    folder = path if path.is_dir() else path.parent
    files.names[str(above)] = str(folder.parent)
    files.allow = partial(_require_inside, reference)
    try:
        pinned = files.pin_weights(path, here, WEIGHTS)
        for place, private in {folder: here, folder.parent: above}.items():
            for file in _existing(place, NEIGHBOURS):
                files.pin(file, private / file.name)
        model = recorded_model(pinned)
        for place, private in {folder: here, folder.parent: above}.items():
            for file in _jsons(place, f"{model}.json"):
                with suppress(CheckpointNotAllowed, FileNotFoundError):  # somebody else's; as if it were not there
                    files.pin(file, private / file.name)
    except FileNotFoundError as error:
        raise CheckpointGone(f"{reference.label}: {error.filename} went away while it was opened") from None
    except OSError as error:
        raise NotACheckpoint(f"{reference.label}: {path} cannot be read: {os_reason(error)}") from None
    except CheckpointError as error:
        raise type(error)(f"{reference.label}: {error.message}") from None
    if reference.source is not None:
        # What was fetched is known by its address; the names of its copy say nothing.
        files.names[str(here / path.name)] = reference.source
    return replace(reference, path=str(pinned))


def _require_inside(reference: CheckpointRef, real: Path, shown: str) -> None:
    require_inside(real, reference.roots, shown, reference.closed)


def _jsons(folder: Path, model: str) -> Iterator[Path]:
    """Yield JSON files next to a checkpoint, of very many a few more than are looked at; that of `model` first."""
    names = sorted(_names(folder, (".json",)), key=lambda name: (name != model, name))
    return _existing(folder, names[: MAX_BESIDE + 1])


def _existing(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        if _is_readable(folder / name):
            yield folder / name


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a link into a folder that may not be entered
        return False


def _names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, MAX_NEIGHBOURS) if entry.name.endswith(endings))
    except OSError:  # a folder that may be passed through and not be listed
        return []


def _is_json(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16).lstrip().startswith(b"{")


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that `count` more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 512:
        wanted = count + 1024
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))


def _require_unchanged(reference: CheckpointRef, files: _Open) -> None:
    """A change that hides its time of modification still shows in that of the inode, unless a link came or went."""
    for descriptor, before in files.stats.items():
        now = os.fstat(descriptor)
        content = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        inode = now.st_ctime_ns == before.st_ctime_ns or now.st_nlink != before.st_nlink
        if not content or not inode:
            raise CheckpointChanged(
                f"{reference.label}: {reference.source or reference.path} was written to while it was read; post it "
                "again with replace=true when it is complete"
            )


@contextmanager
def _posted_names(files: _Open) -> Iterator[None]:
    try:
        yield
    except EvalsvcError as error:
        raise type(error)(_with_posted_names(error.message, files)) from error


def _with_posted_names(message: str, files: _Open) -> str:
    for private in sorted(files.names, key=len, reverse=True):
        message = message.replace(private, files.names[private])
    return message
