"""Files of a copy of the pages: their names, and a folder that has all of them or none."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, os_reason
from evalsvc.files.atomic import write_whole
from evalsvc.web.page import Surroundings
from evalsvc.web.panel import Panel


@dataclass
class Site:
    """A copy that is being written."""

    client: Client
    around: Surroundings
    folder: Path
    runs: Sequence[str]
    names: dict[str, str] = field(default_factory=dict)
    """Names of the files of pages and tables, by address."""
    waiting: deque[str] = field(default_factory=deque)
    """Addresses of the pages that have a name and are not written."""
    taken: set[str] = field(default_factory=set)
    """Names of all files, in lower case: some disks do not tell cases apart."""
    panels: dict[str, Panel] = field(default_factory=dict)
    """Panels by address."""
    artifacts: dict[int, str | None] = field(default_factory=dict)
    """Names of artifacts' files, by id; None for artifacts that are left out."""
    states: int = 0
    files: int = 0
    size: int = 0
    """Bytes of all files."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file below the folder of the site.

        Raises:
            InvalidRequest: the name leads out of the folder, or the file cannot be written.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidRequest(f"the file {name!r} would be outside {self.folder}; the service names no such files")
        try:
            write_whole(path, content, durable=False, mode=0o644)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {os_reason(error)}; give another folder") from None
        self.files += 1
        self.size += len(content)

    def claim(self, stem: str, ending: str) -> str:
        """Return a name for a file that no other file of the site has, of characters that every disk takes."""
        stem = re.sub(r"[^A-Za-z0-9._/-]+|(?<![A-Za-z0-9])\.+", "_", stem)[:180].strip("/")
        name = f"{stem}.{ending}"
        number = 2
        while name.lower() in self.taken:
            name = f"{stem}-{number}.{ending}"
            number += 1
        self.taken.add(name.lower())
        return name

    def name(self, address: str, stem: str) -> str:
        """Name the file of a page, and have the page written; return the name."""
        if address not in self.names:
            self.names[address] = self.claim(stem, "html")
            self.waiting.append(address)
        return self.names[address]


@contextmanager
def emptied_on_failure(folder: Path) -> Iterator[None]:
    """Refuse a folder that has files. If the block raises, remove everything in the folder."""
    try:
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        has_files = any(folder.iterdir())
    except OSError as error:
        raise InvalidRequest(f"the folder {folder} cannot be used: {os_reason(error)}; give another folder") from None
    if has_files:
        raise InvalidRequest(f"the folder {folder} has files; give a folder that is empty or does not exist")
    try:
        yield
    except BaseException:  # also Ctrl-C: half a copy looks like a whole one
        with suppress(OSError):
            for path in folder.iterdir():
                rmtree(path) if path.is_dir() else path.unlink()
            if not existed:
                folder.rmdir()
        raise
