"""The REST routes of this process, for pages that ask the public API as any client does, without a connection."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from anyio import from_thread
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

URL = "http://service"


class OwnRoutes(httpx.BaseTransport):
    """A transport that calls an application in the event loop. Call from a thread that the event loop started.

    The layers before the routes are left out: the page's own request has passed them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer of the route, read whole."""
        return from_thread.run(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        answer: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        await self._app(
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": request.method,
                "scheme": "http",
                "path": request.url.path,
                "raw_path": request.url.raw_path.partition(b"?")[0],
                "query_string": request.url.query,
                "root_path": "",
                "headers": [(name.lower(), value) for name, value in request.headers.raw],
                "client": None,
                "server": ("service", 80),
            },
            receive,
            send,
        )
        start, *pieces = answer
        body = b"".join(piece.get("body", b"") for piece in pieces)
        return httpx.Response(start["status"], headers=start["headers"], content=body, request=request)


def routes_alone(app: FastAPI, add_routes: Callable[[FastAPI], None]) -> FastAPI:
    """Return an application with the routes and the state of `app`, and none of its layers."""
    alone = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    alone.state = app.state
    add_routes(alone)
    return alone
