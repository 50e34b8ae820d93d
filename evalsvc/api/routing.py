"""How a request reaches the function of its route."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from evalsvc.api.middleware.bodies import JsonRequest
from evalsvc.api.state import State


class Route(APIRoute):
    """A route with a bounded body, whose function runs in a thread of its kind: that of a GET reads, others write.

    The function takes the `state`. A coroutine runs on the event loop and sees to its threads itself.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_thread(endpoint, reads=set(options.get("methods") or ()) <= {"GET"})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_bounded


router_of = functools.partial(APIRouter, route_class=Route)
"""A router of such routes."""


def _in_thread(function: Callable[..., Any], reads: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*, state: State, **values: Any) -> Any:
        return await state.threads.run("read" if reads else "write", function, state=state, **values)

    return run
