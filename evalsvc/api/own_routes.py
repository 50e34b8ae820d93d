"""The REST routes of this process, for pages that ask the public API as any client does, without a connection."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from anyio import from_thread
from fastapi import FastAPI

URL = "http://service"


class OwnRoutes(httpx.BaseTransport):
    """A transport that calls an application in the event loop. Call from a thread that the event loop started."""

    def __init__(self, app: FastAPI) -> None:
        self._routes = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer of the route, read whole."""
        return from_thread.run(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._routes.handle_async_request(request)
        content = b"".join([piece async for piece in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)


def routes_alone(app: FastAPI, add_routes: Callable[[FastAPI], None]) -> FastAPI:
    """Return an application with the routes and the state of `app`, and none of its layers.

    A page's own request has passed the layers: access, limits and compression.
    """
    alone = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    alone.state = app.state
    add_routes(alone)
    return alone
