"""Tokens in the database: made, listed and revoked by commands, each in one short transaction beside the service's."""

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
    """Make a token and return it: nobody can ask for it again.

    Raises:
        InvalidRequest: no name, or it would have expired already.
        Conflict: a token that is not revoked has this name.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:160]!r} is not a name; use letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
        )
    if days is not None and not 0 < days <= MAX_DAYS:
        raise InvalidRequest(f"--days {days:g}: give a number above 0 and up to {MAX_DAYS:,}, or leave it out")
    if _current(session, name) is not None:
        raise Conflict(
            f"there is a token named {name!r}; revoke it first (evalsvc token revoke {name}) or name another"
        )
    token = new_token()
    expires = None if days is None else now() + timedelta(days=days)
    session.add(Token(name=name, scope=scope, sha256=hash_token(token), expires_at=expires))
    return token


def revoke_token(session: Session, name: str) -> Token:
    """Let nobody in by this token any more. Its row stays: a service that had tokens is not opened by revoking them.

    Raises:
        UnknownName: no token has this name, or it is revoked; near misses are named.
    """
    token = _current(session, name)
    if token is None:
        known = session.scalars(select(Token.name).where(Token.revoked_at.is_(None)))
        raise UnknownName.among("token that is not revoked", name, known, "evalsvc token list shows all")
    token.revoked_at = now()
    return token


def all_tokens(session: Session) -> list[Token]:
    """Every token there ever was, by age."""
    return list(session.scalars(select(Token).order_by(Token.id)))


def has_tokens(session: Session) -> bool:
    """Whether there ever was one: from then on a service lets nobody in without."""
    return session.scalar(select(Token.id).limit(1)) is not None


def note_use(session: Session, token: int, when: datetime) -> None:
    """Write down when a token was last used."""
    session.execute(update(Token).where(Token.id == token).values(last_used_at=when))


def _current(session: Session, name: str) -> Token | None:
    return session.scalar(select(Token).where(Token.name == name, Token.revoked_at.is_(None)))
