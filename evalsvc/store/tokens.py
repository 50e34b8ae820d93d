"""Tokens in the database. Commands create, list and revoke tokens in short transactions while the service runs."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from evalsvc.access_tokens import TokenScope, hash_token, new_token
from evalsvc.errors import Conflict, InvalidRequest, UnknownName
from evalsvc.spec.names import NAME
from evalsvc.store.tables import Token, now

MAX_DAYS = 36_500


def create_token(session: Session, name: str, scope: TokenScope, days: float | None = None) -> str:
    """Create a token and return its text, which is not stored."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:160]!r} is not a name; use letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
        )
    if days is not None and not 0 < days <= MAX_DAYS:
        raise InvalidRequest(f"--days {days:g}: give a number above 0 and up to {MAX_DAYS:,}, or leave --days out")
    if _current(session, name) is not None:
        raise Conflict(
            f"a token named {name!r} exists; revoke that token first (evalsvc tokens revoke {name}), or choose another "
            "name"
        )
    token = new_token()
    expires = None if days is None else now() + timedelta(days=days)
    session.add(Token(name=name, scope=scope, sha256=hash_token(token), expires_at=expires))
    return token


def revoke_token(session: Session, name: str) -> Token:
    """Revoke a token. Its row stays, so that revoking all tokens does not open the service."""
    token = _current(session, name)
    if token is None:
        known = session.scalars(select(Token.name).where(Token.revoked_at.is_(None)))
        raise UnknownName.among("token that is not revoked", name, known, "evalsvc tokens list shows all")
    token.revoked_at = now()
    return token


def all_tokens(session: Session) -> list[Token]:
    """Return all tokens, the oldest first, including revoked and expired tokens."""
    return list(session.scalars(select(Token).order_by(Token.id)))


def has_tokens(session: Session) -> bool:
    """Tell whether a token was ever created. From then on, every request needs a token."""
    return session.scalar(select(Token.id).limit(1)) is not None


def note_use(session: Session, token: int, when: datetime) -> None:
    session.execute(update(Token).where(Token.id == token).values(last_used_at=when))


def _current(session: Session, name: str) -> Token | None:
    return session.scalar(select(Token).where(Token.name == name, Token.revoked_at.is_(None)))
