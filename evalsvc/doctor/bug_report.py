"""The content of a bug report: the versions and settings of an installation, without secrets."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from evalsvc import __version__
from evalsvc.config import PREFIX, SECRETS, SETTINGS, Settings, shown_url, usable_cores
from evalsvc.errors import EvalsvcError
from evalsvc.installation import NAME, code_digest, find_commit, find_origin

TOOLS = re.compile(r"extra == ['\"](test|docs|all)['\"]")
"""Marker of packages that evalsvc does not compute with; `all` repeats the other extras."""


def report_lines() -> Iterator[str]:
    """Yield the lines of the report. Neither torch nor a package of the service is imported."""
    yield f"evalsvc {__version__}"
    yield f"installed from: {find_origin()}"
    yield f"commit: {find_commit() or 'not known'}"
    yield f"code: {code_digest()}"
    yield f"python: {platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield f"platform: {platform.platform()}, {usable_cores()} of {os.cpu_count()} cores"
    try:
        settings = Settings.load()
    except EvalsvcError as error:
        yield f"settings: cannot be read: {error.message}"
    else:
        for item in SETTINGS:
            if (value := getattr(settings, item.name)) != item.default:
                # The address of a database reveals more about a site than a report needs.
                text = "set" if item.name in SECRETS else shown_setting(item.name, value)
                yield f"setting: {PREFIX}{item.name.upper()}={text}"
    try:
        required = [text for text in metadata.requires(NAME) or () if not TOOLS.search(text)]
    except metadata.PackageNotFoundError:
        required = ["torch"]  # the code runs from a folder
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
