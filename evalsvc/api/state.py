"""The state of the application, which routes share: settings, store and coordinator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from evalsvc.api.answers import Answers, rendered
from evalsvc.api.middleware.threads import Threads
from evalsvc.config import Settings, shown_url
from evalsvc.errors import DatabaseUnusable, ReadOnly
from evalsvc.files.uploads import Uploads
from evalsvc.service.coordinator import Coordinator
from evalsvc.store.data_folder import DiskUse
from evalsvc.store.session import BUSY_TIMEOUT_MS, Store, translated

IN_MEMORY = 6
"""About how many times the bytes of its JSON a document takes in memory."""


@dataclass(frozen=True)
class State:
    settings: Settings
    store: Store
    coordinator: Coordinator
    uploads: Uploads
    disk: DiskUse
    lock: threading.Lock = field(default_factory=threading.Lock)
    """The lock of writing requests. Without the lock, two concurrent posts of a new run would both create the run."""
    threads: Threads = field(default_factory=Threads)
    answers: Answers[bytes] = field(default_factory=Answers)
    documents: Answers[Any] = field(default_factory=lambda: Answers(lambda made: IN_MEMORY * len(rendered(made))))
    """Documents that pages read."""
    pictures: Answers[bytes] = field(default_factory=Answers)
    """Charts as pictures. Apart from other answers, so that pictures push none of them out."""

    @contextmanager
    def writing(self) -> Iterator[Session]:
        self.require_writer()
        if not self.lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            # Without a timeout, requests that wait for a hanging database would occupy all threads for writes.
            raise DatabaseUnusable(
                f"the database {shown_url(self.store.url)} is busy with other writes; try again in a moment"
            )
        try:
            with translated(self.store.url), self.store.transaction() as session:
                yield session
        finally:
            self.lock.release()

    def require_writer(self) -> None:
        if self.settings.read_only:
            raise ReadOnly("this service is read-only (--read-only); send writes to the other service of its database")
        if self.coordinator.displaced():
            raise ReadOnly(
                "another service has taken over the database; send writes to that service, and stop this one"
            )

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with translated(self.store.url), self.store.reading() as session:
            yield session


async def _state(request: Request) -> State:  # a coroutine, since FastAPI would run a function in a thread
    state: State = request.app.state.state
    return state


CurrentState = Annotated[State, Depends(_state)]
