"""Finding lm-eval's benchmarks by name, without lm-eval: its own index parses 14,000 YAML files, which takes 12 s.

Names are found the way lm-eval finds them. Only the few keys that they hang on are read, by a pattern.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from evalsvc.errors import InvalidData, UnknownName

_KEY = re.compile(
    rb"""^["']?(task|group|tag|include|class)["']?[ \t]*:([^\n]*(?:\n(?:[ \t#-][^\n]*|\r?)(?=\n|\Z))*)""", re.MULTILINE
)
"""A key of a YAML file's outermost mapping that says what the file is, and its value up to the next key."""

_PLAIN = re.compile(rb"""[ \t]*(["']?)((?:[A-Za-z_]|\.\.?/)[\w./-]*)\1\s*""")
"""A value that means itself in YAML, and needs no parser."""

_WORDS = {b"true", b"false", b"yes", b"no", b"on", b"off", b"null"}
"""Plain values that YAML takes for something else than text."""


class Kind(StrEnum):
    benchmark = "benchmark"
    group = "group"
    """Has a YAML file of its own, which lists its members and may aggregate their metrics."""
    tag = "tag"
    """A word that benchmarks have in common."""


@dataclass(frozen=True)
class Entry:
    """What a name stands for."""

    name: str
    kind: Kind
    path: Path | None
    """The YAML file; None for a tag."""
    members: tuple[str, ...] = ()
    """Of a tag: its benchmarks, sorted."""

    @property
    def origin(self) -> str:
        """Where it comes from, in words; of lm-eval's own files the path within lm-eval."""
        if self.path is None:
            return f"{len(self.members)} benchmarks"
        folder = shipped_folder()
        return str(self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path)


class Registry:
    """Names in the folders of an `include_path`, and behind them those of lm-eval."""

    def __init__(self, include_path: Sequence[Path] = ()) -> None:
        """Raises InvalidData for a folder that is not there."""
        self._local: dict[str, Entry] = {}
        for folder in reversed(include_path):
            if not folder.is_dir():
                raise InvalidData(f"the folder {folder} of include_path does not exist; correct the path")
            self._local |= scan(folder)

    def find(self, name: str) -> Entry:
        """What `name` stands for; lm-eval's own names are read when the first of them is asked for.

        Raises:
            UnknownName: nothing has this name; near misses are named.
        """
        entry = self.get(name)
        if entry is None:
            names = self.names()
            near = difflib.get_close_matches(name, names, cutoff=0.3)
            hint = f"`evalsvc benchmarks list` shows all {len(names):,}; your own are found by `include_path`"
            raise UnknownName.among("benchmark", name, {*self._local, *(near or names[:3])}, hint)
        return entry

    def get(self, name: str) -> Entry | None:
        return self._local.get(name) or shipped().get(name)

    def names(self) -> list[str]:
        return sorted({*self._local, *shipped()})

    def search(self, part: str) -> list[Entry]:
        """Everything with `part` in its name, sorted."""
        return [self.find(name) for name in self.names() if part.lower() in name.lower()]


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Entry]:
    """lm-eval's own names. Takes half a second, the first time that the disk sees these files some more."""
    return scan(shipped_folder())


@lru_cache(maxsize=1)
def shipped_folder() -> Path:
    """The folder of the YAML files that come with lm-eval."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent / "tasks"


def scan(folder: Path) -> dict[str, Entry]:
    """What the YAML files in a folder and the folders in it are, by name. Of two with one name the first counts."""
    headers = _Headers()
    entries: dict[str, Entry] = {}
    tags: dict[str, set[str]] = {}
    for path in sorted(_yaml_files(folder)):
        header = headers.read(path)
        kind = Kind.group if "group" in header and "class" not in header else Kind.benchmark
        name = _value(header.get("group" if kind is Kind.group else "task", b""))
        if not isinstance(name, str) or name in entries:
            continue
        entries[name] = Entry(name, kind, Path(path))
        for tag in _words(header.get("tag", b"")) if kind is Kind.benchmark else ():
            tags.setdefault(tag, set()).add(name)
    return {tag: Entry(tag, Kind.tag, None, tuple(sorted(names))) for tag, names in tags.items()} | entries


def _yaml_files(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        yield from (f"{root}/{name}" for name in files if name.endswith(".yaml"))


class _Headers:
    """The keys of YAML files that say what they are, `include`d ones inherited. Reads each file once."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, bytes]] = {}

    def read(self, path: str) -> dict[str, bytes]:
        if path not in self._read:
            self._read[path] = {}  # a file that includes itself inherits nothing more
            own = _own_keys(path)
            inherited: dict[str, bytes] = {}
            for include in _words(own.pop("include", b"")):
                inherited |= self.read(os.path.normpath(os.path.join(os.path.dirname(path), include)))
            self._read[path] = inherited | own
        return self._read[path]


def _own_keys(path: str) -> dict[str, bytes]:
    """What cannot be read is nothing here; whoever asks for it by its name is told."""
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except OSError:
        return {}
    return {key.decode(): value for key, value in _KEY.findall(content)}


def _words(text: bytes) -> list[str]:
    value = _value(text) if text else None
    return [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]


def _value(text: bytes) -> Any:
    plain = _PLAIN.fullmatch(text)
    if plain and plain[2].lower() not in _WORDS:
        return plain[2].decode()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
