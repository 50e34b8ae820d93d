"""Index of lm-eval's benchmarks by name, without lm-eval, whose index parses 14,000 YAML files in 12 s.

Names are found as lm-eval finds them. Only the few keys that decide names are read, by a pattern.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from evalsvc.data.files import read_bytes
from evalsvc.errors import EvalsvcError, InvalidData, UnknownName, near_misses
from evalsvc.files.opened import Allow, anywhere
from evalsvc.spec.yaml_text import YamlError, read_yaml

MAX_FILE = 1 << 20
"""Largest size of a benchmark file in bytes; lm-eval's largest has a twentieth."""

_KEY = re.compile(
    rb"""^["']?(task|group|tag|include|class)["']?[ \t]*:([^\n]*(?:\n(?:[ \t#-][^\n]*|\r?)(?=\n|\Z))*)""", re.MULTILINE
)
"""Key of a YAML file's outermost mapping that determines the kind of file, with its value up to the next key."""

_PLAIN = re.compile(rb"""[ \t]*(["']?)((?:[A-Za-z_]|\.\.?/)[\w./-]*)\1\s*""")
"""Value that YAML reads as its own text, without a parser."""

_WORDS = {b"true", b"false", b"yes", b"no", b"on", b"off", b"null"}
"""Plain values that YAML does not read as text."""

Kind = Literal["benchmark", "group", "tag"]
"""Kind of a name. A group has a YAML file with its members and may aggregate their metrics. A tag is a shared word."""


@dataclass(frozen=True)
class Entry:
    """Benchmark, group or tag of a name."""

    name: str
    kind: Kind
    path: Path | None
    members: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Origin in words; for lm-eval's files the path within lm-eval."""
        if self.path is None:
            return f"{len(self.members)} benchmarks"
        folder = shipped_folder()
        return str(self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path)


class Registry:
    """Names in the folders of an `include_path`, followed by lm-eval's names."""

    def __init__(self, include_path: Sequence[Path] = (), allow: Allow = anywhere) -> None:
        """Read the names in the folders of `include_path`; `allow` checks every file that is opened."""
        self._local: dict[str, Entry] = {}
        for folder in reversed(include_path):
            if not folder.is_dir():
                raise InvalidData(f"the folder {folder} of include_path does not exist; correct the path")
            self._local |= scan(folder, lambda path: read_bytes(Path(path), allow, MAX_FILE))

    def is_local(self, name: str) -> bool:
        return name in self._local

    def local_benchmark_files(self, name: str) -> list[Path]:
        """Return the files of the benchmarks that a name, other than a group's, has in `include_path`."""
        entry = self._local.get(name)
        if entry is None or entry.kind == "group":
            return []
        if entry.path is not None:
            return [entry.path]
        return [path for member in entry.members for path in self.local_benchmark_files(member)]

    def find(self, name: str) -> Entry:
        """Return the entry of `name`; lm-eval's names are read when the first of them is needed."""
        entry = self.get(name)
        if entry is None:
            names = self.names()
            near = near_misses(name, names, cutoff=0.3)
            hint = f"`evalsvc benchmarks list` shows all {len(names):,}; your own are found by `include_path`"
            raise UnknownName.among("benchmark", name, {*self._local, *(near or names[:3])}, hint)
        return entry

    def get(self, name: str) -> Entry | None:
        return self._local.get(name) or shipped().get(name)

    def names(self) -> list[str]:
        return sorted({*self._local, *shipped()})

    def search(self, part: str) -> list[Entry]:
        return [self.find(name) for name in self.names() if part.lower() in name.lower()]


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Entry]:
    """Return lm-eval's names. Takes half a second, and longer before the files are in the disk cache."""
    return scan(shipped_folder(), _read_shipped)


@lru_cache(maxsize=1)
def shipped_folder() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent / "tasks"


def scan(folder: Path, read: Callable[[str], bytes]) -> dict[str, Entry]:
    """Return the entries of the YAML files in a folder and its subfolders, by name. Of equal names the first counts. A
    file for which `read` raises an error is skipped; the error is raised when the file is requested by its name."""
    headers: dict[str, dict[str, bytes]] = {}

    def header_of(path: str) -> dict[str, bytes]:
        """Return the keys of a file that determine its kind, with inherited keys of `include`d files."""
        if path not in headers:
            headers[path] = {}  # a file that includes itself inherits nothing more
            header: dict[str, bytes] = {}
            with suppress(EvalsvcError, OSError):
                header = {key.decode(): value for key, value in _KEY.findall(read(path))}
            inherited: dict[str, bytes] = {}
            for include in _words(header.pop("include", b"")):
                inherited |= header_of(os.path.normpath(os.path.join(os.path.dirname(path), include)))
            headers[path] = inherited | header
        return headers[path]

    entries: dict[str, Entry] = {}
    tags: dict[str, set[str]] = {}
    for path in sorted(_yaml_files(folder)):
        header = header_of(path)
        kind: Kind = "group" if "group" in header and "class" not in header else "benchmark"
        name = _value(header.get("group" if kind == "group" else "task", b""))
        if not isinstance(name, str) or name in entries:
            continue
        entries[name] = Entry(name, kind, Path(path))
        for tag in _words(header.get("tag", b"")) if kind == "benchmark" else ():
            tags.setdefault(tag, set()).add(name)
    return {tag: Entry(tag, "tag", None, tuple(sorted(names))) for tag, names in tags.items()} | entries


def _yaml_files(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        yield from (f"{root}/{name}" for name in files if name.endswith(".yaml"))


def _read_shipped(path: str) -> bytes:
    # 14,000 files: read without checks of installed files, and with the fewest system calls.
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _words(text: bytes) -> list[str]:
    value = _value(text) if text else None
    return [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]


def _value(text: bytes) -> object:
    plain = _PLAIN.fullmatch(text)
    if plain and plain[2].lower() not in _WORDS:
        return plain[2].decode()
    try:
        return read_yaml(text)
    except YamlError:
        return None
