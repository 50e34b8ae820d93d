"""The web application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from evalsvc import __version__
from evalsvc.api.answers import HeadAsGet
from evalsvc.api.errors import add_handlers
from evalsvc.api.middleware.access import Access, add_access_to_openapi, needs_of
from evalsvc.api.middleware.bodies import BodyLimit
from evalsvc.api.middleware.browsers import SecurityHeaders
from evalsvc.api.middleware.request_ids import RequestIds
from evalsvc.api.middleware.threads import Admission
from evalsvc.api.routes import (
    artifacts,
    checkpoints,
    compare,
    evaluations,
    events,
    health,
    history,
    imports,
    prometheus,
    runs,
    suites,
    table,
    uploads,
)
from evalsvc.api.routes.docs import add_docs
from evalsvc.api.routes.pages import add_pages
from evalsvc.api.state import State
from evalsvc.config import Settings
from evalsvc.files.uploads import Uploads
from evalsvc.installation import code_digest, find_commit
from evalsvc.service.coordinator import Coordinator
from evalsvc.spec import catalog
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.spec.suite import suite_files
from evalsvc.store.data_folder import DiskUse
from evalsvc.store.session import Store, open_store

COMPRESSED_FROM = 1_400
"""The least bytes of a compressed answer. A smaller answer fits one packet. Event streams are never compressed."""

COMPRESSION = 1
"""The level of gzip. Level 1 compresses 4.8 MB of history to 44 % in 33 ms, level 9 to 41 % in 369 ms."""

NOUNS = (
    checkpoints,
    uploads,
    evaluations,
    events,
    artifacts,
    runs,
    history,
    imports,
    compare,
    table,
    suites,
    health,
    prometheus,
)
"""Modules with routes, in the order of the OpenAPI document."""

MakeCoordinator = Callable[[Store, Settings], Coordinator]


def create_app(
    settings: Settings, make_coordinator: MakeCoordinator = Coordinator, *, insecure: bool = False
) -> FastAPI:
    """Return the web application. `insecure` admits every client at any address while no token exists."""
    suite_files(settings.suites_path)
    parse_retention(settings.retention)
    for task in catalog.COMPONENTS["tasks"]:
        catalog.load("tasks", task)  # imported before threads import it; see `add_pages`
    app = FastAPI(
        title="evalsvc",
        version=__version__,
        description="Checkpoints in, metric history per training step out.",
        lifespan=partial(_lifespan, settings, make_coordinator),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    for noun in NOUNS:
        app.router.routes.extend(noun.router.routes)
    add_handlers(app)
    add_docs(app)
    add_pages(app)
    if unmarked := [route for route in app.routes if needs_of(route) is None]:
        raise TypeError(f"mark the functions of these routes with `@needs(SCOPE)`: {unmarked}")
    add_access_to_openapi(app, bool(settings.open_reads))
    # The middleware that is added last receives a request first.
    app.add_middleware(BodyLimit)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM, compresslevel=COMPRESSION)
    app.add_middleware(Access, settings=settings, insecure=insecure)
    app.add_middleware(SecurityHeaders)
    app.state.requests = prometheus.Requests()
    app.add_middleware(prometheus.CountRequests, requests=app.state.requests)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestIds)
    app.add_middleware(Admission)
    return app


@asynccontextmanager
async def _lifespan(settings: Settings, make_coordinator: MakeCoordinator, app: FastAPI) -> AsyncIterator[None]:
    reads = bool(settings.read_only)
    for known in (code_digest, find_commit):  # of the code that runs, and not while a probe waits
        await run_in_threadpool(known)
    store = await run_in_threadpool(partial(open_store, settings.database, migrate=False, read_only=reads))
    coordinator = make_coordinator(store, settings)
    if not reads:
        coordinator.start()
    folder = Uploads(settings.uploads_path, settings.upload_bytes)
    app.state.state = State(settings, store, coordinator, folder, DiskUse(settings.data_path, settings.database))
    app.state.followers = events.Followers(app.state.state)
    try:
        yield
    finally:
        await app.state.followers.close()
        await run_in_threadpool(coordinator.stop)
        store.close()
