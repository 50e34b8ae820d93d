"""What every route works with: the settings, the store, and the coordinator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from evalsvc.config import Settings
from evalsvc.coordinator import Coordinator
from evalsvc.store.session import Store, database_unusable, is_outage


@dataclass(frozen=True)
class State:
    settings: Settings
    store: Store
    coordinator: Coordinator
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a request writes: two posts of a new run at once must not both make it."""

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction of a request; DatabaseUnusable where the database does not answer."""
        with self.lock, self._translating(), self.store.transaction() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads; DatabaseUnusable where the database does not answer."""
        with self._translating(), self.store.reading() as session:
            yield session

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            raise database_unusable(self.store.url, error) from error


def _state(request: Request) -> State:
    state: State = request.app.state.state
    return state


CurrentState = Annotated[State, Depends(_state)]
