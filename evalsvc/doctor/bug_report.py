"""The content of a bug report: versions, machine, cards, database and settings of an installation.

No line holds a secret: secret settings are shown as `set`, and the database only by its kind and schema.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from evalsvc import __version__
from evalsvc.config import PREFIX, SECRETS, Settings, shown_url
from evalsvc.errors import EvalsvcError
from evalsvc.installation import NAME, Origin, find_origin

TOOLS = re.compile(r"extra == ['\"](test|docs|all)['\"]")
"""Marker of packages that evalsvc does not compute with; `all` repeats the other extras."""

PATIENCE = 10.0
"""Seconds that another program may take."""


def report_lines() -> Iterator[str]:
    """Yield the lines of the report. Neither torch nor a package of the service is imported unless needed."""
    origin = find_origin()
    yield f"evalsvc {__version__}"
    yield f"installed from: {origin}"
    yield f"commit: {_commit(origin) or 'not known'}"
    yield f"python: {platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield f"platform: {platform.platform()}, {os.cpu_count()} cores"
    yield f"torch: {_torch()}"
    cards = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    yield from (f"card: {card}" for card in cards.splitlines() or ["none that nvidia-smi shows"])
    try:
        settings = Settings.load()
    except EvalsvcError as error:
        yield f"settings: cannot be read: {error.message}"
    else:
        yield f"database: {_database(settings)}"
        for item in fields(settings):
            if (value := getattr(settings, item.name)) != item.default:
                # The address of a database reveals more about a site than a report needs.
                shown = "set" if item.name in SECRETS else shown_setting(item.name, value)
                yield f"setting: {PREFIX}{item.name.upper()}={shown}"
    try:
        required = [text for text in metadata.requires(NAME) or () if not TOOLS.search(text)]
    except metadata.PackageNotFoundError:
        return  # the code runs from a folder
    for package in sorted({match[0] for text in required if (match := re.match(r"[\w.-]+", text))} - {NAME}):
        try:
            yield f"package: {package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"package: {package} is not installed"


def shown_setting(name: str, value: object) -> str:
    """Return a setting's value for display: `set` for a secret, and an address without user and password."""
    if name == "database_url":
        return shown_url(str(value))
    if name in SECRETS and value:
        return "set"
    return re.sub(r"//[^/@]*@", "//", str(value))


def _commit(origin: Origin) -> str:
    """Return the installed commit; a checkout with changed files ends with `-dirty`."""
    # A copied folder does not record its commit.
    if origin.folder is None or not origin.is_editable or not (origin.folder / ".git").exists():
        return origin.commit
    return _output("git", "-C", str(origin.folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _torch() -> str:
    """Return torch's version, such as `2.13.0+cu130`, without importing torch, which takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed"
    try:
        return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"])
    except Exception as error:  # the file may have another form in another release
        return f"installed, but its version cannot be read ({type(error).__name__})"


def _database(settings: Settings) -> str:
    """Return the kind of the database and its schema version. A missing SQLite file is not created."""
    kind = re.split(r"[:+]", settings.database)[0]
    if database_is_missing(settings):
        return f"{kind}, not created yet"
    # Imported here because it takes half a second, which an installation without a database does not need.
    from evalsvc.store.session import Store

    try:
        store = Store(settings.database)
        try:
            return f"{kind}, schema {store.schema_version() or 'none'}"
        finally:
            store.close()
    except EvalsvcError as error:
        return f"{kind}, cannot be read [{error.code}]"


def database_is_missing(settings: Settings) -> bool:
    """Return whether the database is an SQLite file that does not exist yet."""
    database = settings.database
    return database.startswith("sqlite:///") and not Path(database.removeprefix("sqlite:///")).exists()


def _output(*command: str) -> str:
    """Return the output of a program; empty if it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()
