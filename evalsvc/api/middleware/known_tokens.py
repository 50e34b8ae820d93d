"""The tokens as this process knows them: a copy of the table that is never older than a few seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from evalsvc.access_tokens import hash_token
from evalsvc.errors import Unauthorized
from evalsvc.store.session import Store, database_unusable
from evalsvc.store.tables import Token
from evalsvc.store.tokens import all_tokens, note_use

log = logging.getLogger(__name__)

LIFETIME = 2.0
"""Seconds for which a copy holds: so long a new token is not known, and a revoked one lets in, at most."""

PATIENCE = 2.0
"""Seconds that a request waits for a newer copy where there is an older one: a database that hangs holds nobody up."""

FIRST_PATIENCE = 15.0
"""Seconds that a request waits where there is no copy yet; longer than a locked SQLite database is waited for."""

NOTE_EVERY = 60.0
"""Seconds between two notes of a token's use."""


class KnownTokens:
    """While the database does not answer, the last copy holds: nothing can be revoked then either.

    The table is read, and uses are written, in threads that no request can occupy.
    """

    def __init__(self) -> None:
        self._tokens: Mapping[str, Token] | None = None
        self._read_at = 0.0
        self._reader = ThreadPoolExecutor(1, "known-tokens")
        self._refresh: Future[Exception | None] | None = None
        self._writer = ThreadPoolExecutor(1, "token-uses")
        self._noted: dict[int, float] = {}
        self._begun = datetime.now(UTC), time.monotonic()

    def now(self) -> datetime:
        """The time by which tokens expire. One that has expired does not come back when the clock is set back."""
        begun, ticks = self._begun
        return max(datetime.now(UTC), begun + timedelta(seconds=time.monotonic() - ticks))

    async def read(self, store: Store) -> Mapping[str, Token]:
        """Every token there ever was, by its hash.

        Raises:
            DatabaseUnusable: the database does not answer and never did.
        """
        if self._tokens is None:
            await self._read_first(store)
        elif time.monotonic() - self._read_at > LIFETIME and not self._is_refreshing():
            # One at a time: a database that hangs must not hold up every request.
            await asyncio.wait({asyncio.wrap_future(self._begin_refresh(store))}, timeout=PATIENCE)
        assert self._tokens is not None
        return self._tokens

    def note_use(self, token: Token, store: Store) -> Future[None] | None:
        """Have a use written down behind the request's back; None: one of the last minute stands there already."""
        if time.monotonic() - self._noted.get(token.id, -NOTE_EVERY) < NOTE_EVERY:
            return None
        self._noted[token.id] = time.monotonic()
        return self._writer.submit(_write_use, store, token, datetime.now(UTC))

    async def _read_first(self, store: Store) -> None:
        """Wait for the first copy, which all requests share until it is there."""
        refresh = self._refresh if self._is_refreshing() else None
        waiting = asyncio.wrap_future(refresh or self._begin_refresh(store))
        await asyncio.wait({waiting}, timeout=FIRST_PATIENCE)
        if self._tokens is None:
            error = waiting.result() if waiting.done() else None
            raise database_unusable(store.url, error or TimeoutError(f"no answer within {FIRST_PATIENCE:g} s"))

    def _is_refreshing(self) -> bool:
        return self._refresh is not None and not self._refresh.done()

    def _begin_refresh(self, store: Store) -> Future[Exception | None]:
        self._refresh = self._reader.submit(self._read_table, store)
        return self._refresh

    def _read_table(self, store: Store) -> Exception | None:
        """Read the table into a new copy; what kept it from being read."""
        asked = time.monotonic()
        try:
            with store.reading() as session:
                self._tokens = {token.sha256: token for token in all_tokens(session)}
        except Exception as error:  # whatever it is, the next look may succeed
            log.warning("the tokens could not be read; those of the last look hold: %s", type(error).__name__)
            return error
        finally:
            # After a failure too: the next look is after the lifetime, not at every request.
            self._read_at = asked
        return None


def _write_use(store: Store, token: Token, when: datetime) -> None:
    try:
        with store.transaction() as session:
            note_use(session, token.id, when)
    except SQLAlchemyError as error:
        log.warning("the use of token %s could not be noted: %s", token.name, type(error).__name__)


def find_token(tokens: Mapping[str, Token], authorization: str | None, now: datetime) -> Token:
    """The token that an Authorization header shows.

    Raises:
        Unauthorized: there is none, or it is not known, revoked or expired.
    """
    if authorization is None:
        raise Unauthorized(
            "this service lets nobody in without a token; send `Authorization: Bearer TOKEN`, or set EVALSVC_TOKEN for "
            "the client and the command line; the operator makes one: evalsvc token create NAME"
        )
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() != "bearer":
        # Not what it is instead: that may be the token itself.
        raise Unauthorized("the Authorization header holds no bearer token; send `Authorization: Bearer TOKEN`")
    token = tokens.get(hash_token(shown.strip()))
    if token is None:
        raise Unauthorized(
            "the token is not one of this service; check that it was copied whole and is meant for this address, or "
            "ask the operator for one: evalsvc token create NAME"
        )
    # Whoever comes so far has had the token, and may be told what became of it.
    if token.revoked_at is not None:
        raise Unauthorized(f"the token {token.name!r} was revoked; ask the operator for another one")
    if token.expires_at is not None and token.expires_at <= now:
        raise Unauthorized(
            f"the token {token.name!r} expired on {token.expires_at:%Y-%m-%d}; ask the operator for another one"
        )
    return token
