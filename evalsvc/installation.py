"""How evalsvc was installed, and the pip command that adds an extra to this installation."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

from evalsvc.errors import MissingPackage

NAME = "evalsvc"
"""Name of the distribution."""

PACKAGE = Path(__file__).parent

PYTHON = (sys.executable, "-P")
"""Command of a Python process. `-P` imports nothing from the current folder, which may have files of strangers."""


@dataclass(frozen=True)
class Origin:
    """The source that pip installed evalsvc from."""

    folder: Path | None = None
    """Folder of the source, if pip was given a folder."""
    is_editable: bool = False
    """Whether the code runs from `folder` itself, and not from a copy."""
    url: str = ""
    """Address as pip takes it, such as `git+https://host/evalsvc@COMMIT`; empty for a folder and for an index."""
    commit: str = ""
    """Commit that pip resolved the address to; empty if the address is not one of a repository."""

    def requirement(self, extra: str = "") -> str:
        """Return what follows `pip install`, quoted for a shell, for evalsvc with an extra."""
        extras = f"[{extra}]" if extra else ""
        if self.folder is not None:
            option = "-e " if self.is_editable else ""
            return option + shlex.quote(f"{self.folder}{extras}")
        return shlex.quote(f"{NAME}{extras} @ {self.url}" if self.url else NAME + extras)

    def __str__(self) -> str:
        if self.folder is not None:
            return f"{'checkout' if self.is_editable else 'copy of'} {self.folder}"
        return self.url or "package index"


def pip_install(extra: str) -> str:
    """Return the command that installs evalsvc with an extra, for the way in which evalsvc was installed."""
    return f"pip install {find_origin().requirement(extra)}"


def missing_package(package: str, purpose: str, extra: str = "worker") -> MissingPackage:
    """Return an error for a missing package that `purpose`, such as `text data`, needs and an extra installs."""
    return MissingPackage(f"{purpose} needs the package {package!r}; run: {pip_install(extra)}")


def newer_version() -> str:
    """Return, in words, how to get a newer evalsvc, depending on how evalsvc was installed."""
    origin = find_origin()
    if origin.folder is not None:
        return f"update {origin.folder}, then run: pip install {origin.requirement()}"
    if origin.url:
        return f"install a newer one than {origin.url}"
    return f"run: pip install --upgrade {NAME}"


def find_origin(package: Path = PACKAGE) -> Origin:
    """Return the source that the running evalsvc was installed from. Code in a folder with a pyproject.toml is a
    checkout, even if another evalsvc is installed; for other code, pip's record counts."""
    if (package.parent / "pyproject.toml").is_file():
        return Origin(package.parent, is_editable=True)
    try:
        return recorded_origin(metadata.distribution(NAME).read_text("direct_url.json"))
    except metadata.PackageNotFoundError:
        return Origin()


@cache
def code_digest() -> str:
    """Return 12 hexadecimal digits of the SHA-256 of the package's code and presets: processes with other digits run
    another evalsvc, whatever their version says. A wheel has the migrations too, and a checkout next to the package."""
    digest = hashlib.sha256()
    files = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml"))
    for file in sorted(path for path in files if path.relative_to(PACKAGE).parts[0] != "migrations"):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def find_commit(package: Path = PACKAGE) -> str:
    """Return the commit of the running code, as an image records it, or pip, or Git; empty if it is not known."""
    if (recorded := package / "COMMIT").is_file():
        return recorded.read_text().strip()
    origin = find_origin(package)
    if origin.is_editable and origin.folder and (origin.folder / ".git").exists():
        command = ["git", "-C", str(origin.folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return origin.commit


def recorded_origin(record: str | None) -> Origin:
    """Read an installer's `direct_url.json` (PEP 610), without passwords and query parameters. A record of None, or one
    that cannot be read, is that of a package from an index."""
    try:
        content = json.loads(record or "{}")
        return _from_document(content) if content else Origin()
    except (AttributeError, KeyError, TypeError, ValueError):
        return Origin()


def _from_document(content: Mapping[str, Any]) -> Origin:
    if "dir_info" in content:
        folder = Path(url2pathname(urlsplit(content["url"]).path))
        return Origin(folder, is_editable=bool(content["dir_info"].get("editable")))
    url = _without_secrets(content["url"])
    subdirectory = f"#subdirectory={content['subdirectory']}" if content.get("subdirectory") else ""
    if "vcs_info" in content:
        commit = str(content["vcs_info"]["commit_id"])
        return Origin(url=f"{content['vcs_info']['vcs']}+{url}@{commit}{subdirectory}", commit=commit)
    return Origin(url=url + subdirectory)


def _without_secrets(url: str) -> str:
    """Remove the password and the query, which may hold a token; `git@` of SSH stays."""
    parts = urlsplit(url)
    user = re.match(r"([^:@/]+)@", parts.netloc) if "ssh" in parts.scheme else None
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"{user[1]}@{host}" if user else host, parts.path, "", ""))
