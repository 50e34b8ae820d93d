"""A copy of the table of tokens that is at most a few seconds old."""

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
"""Seconds until the copy is renewed, which is the delay until a new token is accepted or a revoked token refused."""

PATIENCE = 2.0
"""Seconds that a request waits for a newer copy before it uses the older one, if the database hangs."""

FIRST_PATIENCE = 15.0
"""Seconds that a request waits for the first copy, which is more than the timeout of a locked SQLite database."""

NOTE_EVERY = 60.0
"""Seconds between two records of a token's use."""


class KnownTokens:
    """A copy of the table of tokens, which dedicated threads read and write.

    While the database does not answer, the last copy stays valid, since no token can be revoked either.
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
        """Return the current time for the expiry of tokens, which does not go back when the clock is set back."""
        begun, ticks = self._begun
        return max(datetime.now(UTC), begun + timedelta(seconds=time.monotonic() - ticks))

    async def read(self, store: Store) -> Mapping[str, Token]:
        """Return all tokens by hash, including revoked and expired ones."""
        if self._tokens is None:
            await self._read_first(store)
        elif time.monotonic() - self._read_at > LIFETIME and not self._is_refreshing():
            # Only one request waits for the refresh, so a hanging database does not delay every request.
            await asyncio.wait({asyncio.wrap_future(self._begin_refresh(store))}, timeout=PATIENCE)
        assert self._tokens is not None
        return self._tokens

    def note_use(self, token: Token, store: Store) -> Future[None] | None:
        """Record the use of a token in another thread; return None if a use was recorded within the last minute."""
        if time.monotonic() - self._noted.get(token.id, -NOTE_EVERY) < NOTE_EVERY:
            return None
        self._noted[token.id] = time.monotonic()
        return self._writer.submit(_write_use, store, token, datetime.now(UTC))

    async def _read_first(self, store: Store) -> None:
        """Wait for the first copy of the table. Concurrent requests wait for the same read."""
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
        asked = time.monotonic()
        try:
            with store.reading() as session:
                self._tokens = {token.sha256: token for token in all_tokens(session)}
        except Exception as error:  # the next read may succeed
            log.warning("the tokens could not be read, so the last copy stays valid: %s", type(error).__name__)
            return error
        finally:
            # After a failure too, the next read is after LIFETIME and not at the next request.
            self._read_at = asked
        return None


def _write_use(store: Store, token: Token, when: datetime) -> None:
    try:
        with store.transaction() as session:
            note_use(session, token.id, when)
    except SQLAlchemyError as error:
        log.warning("the use of token %s could not be recorded: %s", token.name, type(error).__name__)


def find_token(tokens: Mapping[str, Token], authorization: str | None, now: datetime) -> Token:
    """Return the token in an Authorization header."""
    if authorization is None:
        raise Unauthorized(
            "this service needs a token; send `Authorization: Bearer TOKEN`, or set EVALSVC_TOKEN for "
            "the client and the command line; the operator creates a token: evalsvc tokens create NAME"
        )
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer":
        # The message does not quote the header, which may contain the token.
        raise Unauthorized("the Authorization header holds no bearer token; send `Authorization: Bearer TOKEN`")
    return require_current(tokens.get(hash_token(text.strip())), now)


def require_current(token: Token | None, now: datetime) -> Token:
    """Return a token that is known, not revoked and not expired."""
    if token is None:
        raise Unauthorized(
            "this service does not know the token; check that the token was copied whole and is for this address, or "
            "ask the operator for a token: evalsvc tokens create NAME"
        )
    # The client has a token that was valid once, and may learn why the token is refused.
    if token.revoked_at is not None:
        raise Unauthorized(f"the token {token.name!r} was revoked; ask the operator for another token")
    if token.expires_at is not None and token.expires_at <= now:
        raise Unauthorized(
            f"the token {token.name!r} expired on {token.expires_at:%Y-%m-%d}; ask the operator for another token"
        )
    return token
