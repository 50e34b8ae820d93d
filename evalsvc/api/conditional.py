"""Answers that a client may keep: an ETag that is known before anything is read, and 304 where it has not changed."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

NOT_MODIFIED = 304


def caching_headers(tag: str) -> dict[str, str]:
    """Of an answer and of the 304 in its place. Whoever keeps it must ask before it is used again."""
    # Weak: an answer that was compressed on the way has other bytes and the same content.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}


def not_modified(request: Request, tag: str) -> Response | None:
    """The answer to a client that has the newest one already (RFC 9110, 13.1.2); None: it has another one, or none."""
    known = request.headers.get("if-none-match", "")
    tags = {part.strip().removeprefix("W/").strip('"') for part in known.split(",")}
    if known.strip() != "*" and tag not in tags:
        return None
    return Response(status_code=NOT_MODIFIED, headers=caching_headers(tag) | {"Vary": "Accept-Encoding"})
