"""The folder of the training data: who may write into it, and what is left of an interrupted run.

- `00000001.tar` …: shards
- `manifest.jsonl`: number of sequences of each shard, for open_lm
- `held_out.jsonl`: held-out pairs as ids and codes, for the task `loss`
- `held_out_captions.jsonl`: the same captions as texts, for the task `text_to_image`
- `refused.jsonl`: captions and images that were left out, with reasons
- `prepare.json`: the datasheet; a folder with this file is complete
- `settings.json`: settings, which later runs into the folder must have
- `codes/`: codes of images, for later runs
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.files.atomic import PARTIAL, write_whole
from prepare.shards import SHARD_FILE, ShardFile

DATASHEET = "prepare.json"
SETTINGS = "settings.json"
PROGRESS = "shards.jsonl"
"""Shards of an unfinished run: a line with the digest of the sequences, then a line per shard."""
LOCK = ".lock"
CODES = "codes"


class OutputFolder:
    """A folder that this process alone writes to."""

    def __init__(self, path: Path, settings: Mapping[str, JsonValue]) -> None:
        """Take a locked folder that is new, or was begun with these settings. Raises InvalidRequest, OSError."""
        self.path = path
        self.settings = settings
        self._begin()
        self.datasheet = self._read(DATASHEET)
        """Datasheet of an earlier, complete run; None for an unfinished one."""

    def known_shards(self, digest: str) -> dict[str, ShardFile]:
        """Return the shards, by name, that an earlier run wrote of the sequences with this digest.

        Raises InvalidRequest if a complete run had other sequences.
        """
        if self.datasheet is None:
            return self._unfinished(digest)
        if self.datasheet.get("sequences") != digest:
            raise InvalidRequest(
                f"--output {self.path} is complete, and the source has other pairs now; name another --output, and "
                f"--codes {self.path / CODES} to encode no image twice"
            )
        shards = self.datasheet.get("shards")
        return _shards_of(shards if isinstance(shards, list) else [])

    def begin_shards(self, digest: str, shards: Sequence[ShardFile]) -> None:
        """Note the shards that are kept, and remove the others. Raises OSError."""
        lines = [json.dumps({"sequences": digest}) + "\n", *(shard.to_line() for shard in shards)]
        write_whole(self.path / PROGRESS, "".join(lines).encode())
        kept = {f"{shard.shard}.tar" for shard in shards}
        for path in self.path.glob(SHARD_FILE):
            if path.name not in kept:
                path.unlink()

    def add_shard(self, shard: ShardFile) -> None:
        """Note a shard that was written. Raises OSError."""
        with (self.path / PROGRESS).open("ab") as stream:
            stream.write(shard.to_line().encode())

    def finish(self, datasheet: Mapping[str, JsonValue]) -> None:
        """Write the datasheet, which makes the folder complete. Raises OSError."""
        self.write(DATASHEET, (json.dumps(datasheet, indent=2) + "\n").encode())
        (self.path / PROGRESS).unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder whole. Raises OSError."""
        write_whole(self.path / name, content, mode=0o644)

    def _begin(self) -> None:
        before, settings = self._read(SETTINGS), self.settings
        if before is None:
            others = [name for name in os.listdir(self.path) if not name.startswith((LOCK, SETTINGS))]
            if others:
                raise InvalidRequest(
                    f"--output {self.path} is not empty, and was not begun by prepare_data.py; name another folder"
                )
            self.write(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        elif changed := [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]:
            raise InvalidRequest(
                f"--output {self.path} was begun with other settings: {', '.join(changed)}; repeat the settings in its "
                f"{SETTINGS}, or name another --output, and --codes {self.path / CODES} to encode no image twice"
            )
        for path in self.path.glob(f"*{PARTIAL}"):
            path.unlink()  # left by a killed run: the lock is ours

    def _unfinished(self, digest: str) -> dict[str, ShardFile]:
        path = self.path / PROGRESS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        parsed = [content for line in lines if (content := _object(line)) is not None]
        return _shards_of(parsed[1:]) if parsed[:1] == [{"sequences": digest}] else {}

    def _read(self, name: str) -> dict[str, JsonValue] | None:
        """Return the JSON object in a file of the folder; None without the file."""
        path = self.path / name
        if not path.exists():
            return None
        content = _object(path.read_bytes())
        if content is None:
            raise InvalidRequest(f"{path} is damaged; remove the folder, or name another --output")
        return content


@contextmanager
def locked_output(path: Path, settings: Mapping[str, JsonValue]) -> Iterator[OutputFolder]:
    """Create the folder if needed, lock it, and yield it.

    Raises InvalidRequest for a folder that another process writes to, that was begun with other settings, or that
    cannot be written.
    """
    shown = f"--output {path}"
    with writing(shown):
        path.mkdir(exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(lock, path)
        with writing(shown):
            output = OutputFolder(path, settings)
        yield output
    finally:
        os.close(lock)


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Raise InvalidRequest for errors of the operating system; `folder` is an option and its value."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(
            f"{folder} cannot be written: {os_reason(error)}; make room, or name another folder"
        ) from None


def _acquire(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequest(
            f"another prepare_data.py writes to --output {path}; wait for its end, or name another folder"
        ) from None


def _object(line: bytes) -> dict[str, JsonValue] | None:
    """Return a JSON object; None for anything else, such as a line that was cut off."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _shards_of(documents: Sequence[JsonValue]) -> dict[str, ShardFile]:
    """Return shards by name; a document that is no shard is left out."""
    shards: dict[str, ShardFile] = {}
    for document in documents:
        try:
            shard = ShardFile(**document)  # type: ignore[arg-type]
        except TypeError:
            continue
        shards[shard.shard] = shard
    return shards
