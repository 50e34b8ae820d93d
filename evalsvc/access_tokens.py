"""Access tokens, with which requests authenticate.

A token is 256 random bits after a prefix, by which scanners of repositories and logs find leaked tokens. The database
stores only its SHA-256. A slow hash protects secrets that people choose; 256 random bits cannot be guessed at any
speed, and a fast hash can be computed for every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal, get_args

PREFIX = "evalsvc_"

TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
"""Form of a token, in a header, a file, or a text that must not hold one."""

TokenScope = Literal["read", "submit", "admin"]
"""Permission of a token; each scope includes the earlier ones."""

SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token, by which it is stored. The time of a lookup reveals nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def includes(scope: TokenScope, needed: TokenScope) -> bool:
    """Return whether a token of `scope` has the permission `needed`."""
    return SCOPES.index(scope) >= SCOPES.index(needed)
