"""Secrets in files: the client's token, and the database's address with its password.

A container gets its secrets as files, which are invisible in lists of processes and in inspections of the container.
"""

from __future__ import annotations

import re
from pathlib import Path

from evalsvc.access_tokens import PREFIX as PREFIX_OF_TOKENS
from evalsvc.access_tokens import TOKEN
from evalsvc.errors import InvalidRequest, os_reason

MAX_BYTES = 4096
"""Maximum size in bytes of a file with a secret. A larger file is something else, such as a certificate or a dump."""


def read_token(path: Path, variable: str) -> str:
    """Read the token in a file that only its owner may read; `variable` is the setting that names the file."""
    text = _read_line(path, variable)
    if (mode := path.stat().st_mode) & 0o077:
        raise InvalidRequest(f"{variable} {path} may be read by others (mode {mode & 0o777:o}); run: chmod 600 {path}")
    return check_token(text, f"{variable} {path}")


def check_token(text: str, where: str) -> str:
    """Return `text` if it is a token. The message quotes `where` it was found, and not the text, perhaps a secret."""
    if not TOKEN.fullmatch(text):
        raise InvalidRequest(
            f"{where} holds no token of evalsvc, which begins with {PREFIX_OF_TOKENS} and has "
            f"{len(PREFIX_OF_TOKENS) + 43} characters; found {len(text)}; run: evalsvc tokens create NAME"
        )
    return text


def read_database_url(path: Path, variable: str) -> str:
    """Read a database's URL from the one line of a file; `variable` is the setting that names the file. Readers of the
    file are not checked: in a container, every user can read mounted secrets."""
    text = _read_line(path, variable)
    if not re.fullmatch(r"[a-z][a-z0-9+]*://\S+", text):
        raise InvalidRequest(
            f"{variable} {path} holds no URL of a database on one line, such as postgresql://USER:PASSWORD@HOST/NAME; "
            "encode special characters in a password, e.g. / as %2F"
        )
    return text


def _read_line(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not text"
        raise InvalidRequest(f"{variable} {path} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise InvalidRequest(
            f"{variable} {path} has more than {MAX_BYTES} bytes; use a file that holds only the secret"
        )
    return text
