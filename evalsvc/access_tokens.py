"""Tokens: what a request shows to be let in.

A token is 256 random bits behind a prefix by which scanners of repositories and logs find one that leaked. The database
has its SHA-256 only. No slow hash is needed: those make guessing dear where people choose what is hashed, and 256
random bits cannot be guessed at any speed. A fast one can be taken of every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal, get_args

PREFIX = "evalsvc_"

RANDOM_BYTES = 32

TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
"""What a token looks like, in a header, a file, or a text where none should be."""

TokenScope = Literal["read", "submit", "admin"]
"""What a token is good for; each holds those before it."""

SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def hash_token(token: str) -> str:
    """What is kept of a token, and what it is looked up by: as hex. A lookup by it tells nothing by its time."""
    return hashlib.sha256(token.encode()).hexdigest()


def includes(scope: TokenScope, needed: TokenScope) -> bool:
    """Whether a token of `scope` may do what `needed` allows."""
    return SCOPES.index(scope) >= SCOPES.index(needed)
