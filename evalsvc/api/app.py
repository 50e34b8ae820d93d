"""The web application."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc import __version__
from evalsvc.api import artifacts, checkpoints, compare, evaluations, health, imports, metrics, runs, suites, table
from evalsvc.api.errors import add_handlers
from evalsvc.api.state import State
from evalsvc.config import Settings
from evalsvc.coordinator import Coordinator
from evalsvc.store.session import Store, open_store
from evalsvc.suite import suite_files

MAX_BODY = 1_000_000

MAX_IMPORT = 16_000_000
"""Bytes of a body with imported values: 100,000 with steps, errors and n are 5 MB."""

_IMPORT_PATH = re.compile(r"/v1/runs/[^/]+/metrics")

COMPRESSED_FROM = 1_400
"""Bytes of an answer: less is one packet anyway. Streams of events are never compressed."""

COMPRESSION = 1
"""Of 4.8 MB of history level 1 leaves 44 % in 33 ms, and level 9 41 % in 369 ms."""

MakeCoordinator = Callable[[Store, Settings], Coordinator]


def create_app(settings: Settings, make_coordinator: MakeCoordinator = Coordinator) -> FastAPI:
    """The service of these settings; its lifespan opens the store and runs the coordinator.

    Raises:
        InvalidSuite: the folder of the suites does not exist.
    """
    suite_files(settings.suites_path)
    app = FastAPI(
        title="evalsvc",
        version=__version__,
        description="Checkpoints in, metric history per training step out.",
        lifespan=_lifespan(settings, make_coordinator),
    )
    for noun in (checkpoints, evaluations, artifacts, runs, metrics, imports, compare, table, suites, health):
        app.include_router(noun.router)
    add_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM, compresslevel=COMPRESSION)
    return app


def max_body(method: str, path: str) -> int:
    """Bytes that the body of a request may have."""
    return MAX_IMPORT if method == "POST" and _IMPORT_PATH.fullmatch(path) else MAX_BODY


class BodyLimit:
    """Refuse a body of more than `max_body` bytes, however it is sent, having read no more than that of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, read = max_body(scope["method"], scope["path"]), 0

        async def receive_limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"the body is larger than {limit:,} bytes; {_smaller(limit)}")
            return message

        await self.app(scope, receive_limited, send)


def _smaller(limit: int) -> str:
    return "send it in parts, which may come in any order" if limit == MAX_IMPORT else "name a large file by its path"


def _lifespan(
    settings: Settings, make_coordinator: MakeCoordinator
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = await run_in_threadpool(open_store, settings.database, False)
        coordinator = make_coordinator(store, settings)
        coordinator.start()
        app.state.state = State(settings, store, coordinator)
        try:
            yield
        finally:
            await run_in_threadpool(coordinator.stop)
            store.close()

    return lifespan
