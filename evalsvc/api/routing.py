"""The class of REST routes: what they need of a request, checks of query parameters and bodies, and threads."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, get_origin

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.middleware.access import REFUSALS, TOO_LARGE, Needs
from evalsvc.api.middleware.bodies import JsonRequest
from evalsvc.api.state import State
from evalsvc.errors import InvalidRequest, UnknownName


class Route(APIRoute):
    """A route that refuses unknown query parameters and invalid JSON, and runs its function in a thread.

    The function must have the parameter `state`. The function of a GET runs in a thread for reads, any other function
    in a thread for writes. A coroutine runs on the event loop, and starts threads itself.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        needed: Needs = endpoint.__dict__["needs"]
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_thread(endpoint, reads=set(options.get("methods") or ()) <= {"GET"})
        super().__init__(path, endpoint, **options)
        if needed.scope is not None:
            self.openapi_extra = {"x-scope": needed.scope, **(self.openapi_extra or {})}
            has_body = self.body_field is not None or "requestBody" in self.openapi_extra
            self.responses = {**self.responses, **REFUSALS, **(TOO_LARGE if has_body else {})}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        parameters = _query_parameters(self.dependant)

        async def handle_bounded(request: Request) -> Response:
            for name, number in Counter(name for name, _ in request.query_params.multi_items()).items():
                if name not in parameters:
                    raise InvalidRequest(
                        UnknownName.among("query parameter", name, parameters).message
                        if parameters
                        else f"the route takes no query parameters, found {name[:160]!r}; leave the parameter out"
                    )
                if number > 1 and not parameters[name]:
                    raise InvalidRequest(f"the query parameter {name!r} is given {number} times; give {name} once")
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_bounded


router_of = functools.partial(APIRouter, route_class=Route, responses=PROBLEMS)
"""Return a router with routes of the class `Route`, whose errors are problem documents."""


def _query_parameters(dependant: Dependant) -> dict[str, bool]:
    parameters: dict[str, bool] = {}
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = {part.alias or name: part.annotation for name, part in kind.model_fields.items()}
        else:
            inner = {field.alias: kind}
        parameters |= {name: get_origin(annotation) is list for name, annotation in inner.items()}
    for dependency in dependant.dependencies:
        parameters |= _query_parameters(dependency)
    return parameters


def _in_thread(function: Callable[..., Any], reads: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*, state: State, **values: Any) -> Any:
        return await state.threads.run("read" if reads else "write", function, state=state, **values)

    return run
