"""Forms that the dashboard's pages send."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from evalsvc.api.middleware.access import CALLER
from evalsvc.api.middleware.authentication import Caller
from evalsvc.errors import Forbidden, InvalidRequest
from evalsvc.web.page import Visitor

MAX_FORM = 20_000
"""Bytes of a form."""

MAX_FIELDS = 10

MEDIA_TYPE = "application/x-www-form-urlencoded"


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _bounded_body(request)
    if body and given != MEDIA_TYPE:
        raise InvalidRequest(f"the body must be a form ({MEDIA_TYPE}), found {given[:100] or 'no content type'!r}")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise InvalidRequest(
            f"the form is not UTF-8, or has more than {MAX_FIELDS} fields; send it from its page"
        ) from None


async def _bounded_body(request: Request) -> bytes:
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM:
                raise InvalidRequest(f"the form is larger than {MAX_FORM:,} bytes; send it from its page")
    except HTTPException as error:  # the limits of every body
        raise InvalidRequest(str(error.detail)) from None
    return body


def caller_of(request: Request) -> Caller | None:
    """Return who sends a request; None on a route that needs no token."""
    caller: Caller | None = request.scope.get(CALLER)
    return caller


def check_form_key(request: Request, form: Mapping[str, str]) -> None:
    """Refuse a form that a page of this session did not make. Without a session there is nothing to check: an open
    service checks where the request is from, and no other site has a token.
    """
    caller = caller_of(request)
    if caller is None or caller.session is None:
        return
    if not hmac.compare_digest(form.get("key", "").encode(), caller.session.form_key.encode()):
        raise Forbidden("the form is not from this session; open the page again and send its form from there")


def visitor_of(request: Request) -> Visitor:
    """Return what a page needs to know about its reader."""
    caller, state = caller_of(request), request.app.state.state
    if caller is None:
        return Visitor()
    is_open = bool(request.app.state.is_open)
    may_submit = is_open if caller.token is None else caller.token.scope != "read"
    return Visitor(
        may_submit=may_submit and not state.settings.read_only,
        name=caller.token.name if caller.token is not None and caller.session is not None else None,
        form_key=caller.session.form_key if caller.session is not None else "",
        may_sign_in=caller.token is None and not is_open,
    )
