"""An id for every request, in the answer and in each log line about the request."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc.access_tokens import TOKEN
from evalsvc.log import note

log = logging.getLogger(__name__)

HEADER = "X-Request-ID"

GIVEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids that are accepted from a client or a proxy. A request with another id gets a new one."""

ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[A-Za-z0-9._-]{1,16})?")
"""Addresses that are logged. A trusted proxy may pass on any text that its client sent as X-Forwarded-For."""

_KEY = "evalsvc.request_id"


class RequestIds:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        is_name = GIVEN.fullmatch(given) and not TOKEN.search(given)
        request_id = scope[_KEY] = given if is_name else uuid.uuid4().hex
        # The fields are not reset: the server logs a bug after this call, and each request has its own context.
        host = str((scope.get("client") or ("",))[0])
        note(request=request_id, **({"client": host} if ADDRESS.fullmatch(host) else {}))
        begun, status = time.perf_counter(), 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            seconds = round(time.perf_counter() - begun, 4)
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds}
            # The query is not logged, since it may contain secrets.
            log.info("%s %s: %d", scope["method"], scope["path"], status, extra={"fields": fields})


def request_id_of(scope: Scope) -> str:
    return str(scope.get(_KEY, ""))
