"""The state of the application, for every route: the settings, the store, and the coordinator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from evalsvc.api.middleware.conditional import Answers
from evalsvc.api.middleware.threads import Threads
from evalsvc.config import Settings, shown_url
from evalsvc.errors import DatabaseUnusable, ReadOnly
from evalsvc.files.uploads.folder import UploadFolder
from evalsvc.service.coordinator import Coordinator
from evalsvc.store.session import BUSY_TIMEOUT_MS, Store, translated


@dataclass(frozen=True)
class State:
    settings: Settings
    store: Store
    coordinator: Coordinator
    uploads: UploadFolder
    lock: threading.Lock = field(default_factory=threading.Lock)
    """The lock of writing requests, so that two concurrent posts of a new run do not both create the run."""
    threads: Threads = field(default_factory=Threads)
    answers: Answers = field(default_factory=Answers)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Yield the session of a request's transaction.

        Raises:
            DatabaseUnusable: the database does not answer, or other requests have been writing for too long.
            ReadOnly: another service writes to the database.
        """
        self.require_writer()
        if not self.lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            # Behind one that waits for the database all others would take a thread each, until none is left for reads.
            raise DatabaseUnusable(
                f"the database {shown_url(self.store.url)} is busy with what others write; try again in a moment"
            )
        try:
            with translated(self.store.url), self.store.transaction() as session:
                yield session
        finally:
            self.lock.release()

    def require_writer(self) -> None:
        """Raise ReadOnly where writing is for another service."""
        if self.settings.read_only:
            raise ReadOnly("this service answers reads alone (--read-only); write to the other one of its database")
        if self.coordinator.displaced():
            raise ReadOnly("another service has taken over the database; write to that one, and stop this one")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that only reads; raise DatabaseUnusable if the database does not answer."""
        with translated(self.store.url), self.store.reading() as session:
            yield session


async def _state(request: Request) -> State:  # on the event loop: no thread is needed for it
    state: State = request.app.state.state
    return state


CurrentState = Annotated[State, Depends(_state)]
