"""Signing in to the dashboard with a token, and signing out."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from evalsvc.api.errors import STATUS
from evalsvc.api.middleware.access import AUTHENTICATION, CALLER, needs
from evalsvc.api.middleware.authentication import SIGN_IN, SIGN_OUT, Authentication
from evalsvc.api.middleware.browsers import check_same_origin
from evalsvc.api.middleware.rates import client_key
from evalsvc.api.middleware.sessions import cookie_of, local_path, set_cookie
from evalsvc.api.routes.pages import PAGE_HEADERS, around, check_form_key, read_form
from evalsvc.errors import EvalsvcError, Unauthorized
from evalsvc.web.page import Content, html_of

PRIVATE = {"Cache-Control": "no-store"}


def add_sign_in(app: FastAPI) -> None:
    """Add the routes."""
    app.add_route(SIGN_IN, _show, methods=["GET"], include_in_schema=False)
    app.add_route(SIGN_IN, _sign_in, methods=["POST"], include_in_schema=False)
    app.add_route(SIGN_OUT, _sign_out, methods=["POST"], include_in_schema=False)


@needs(None)
async def _show(request: Request) -> Response:
    target = local_path(request.query_params.get("next", "/"))
    try:
        caller = await _authentication(request).caller(request.scope)
    except Unauthorized:
        return _form(request, target, "", 200)
    except EvalsvcError as error:
        return _form(request, target, error.message, STATUS[type(error)], error.retry_after)
    if caller.token is None or caller.session is not None:
        return RedirectResponse(target, 303, headers=PRIVATE)
    return _form(request, target, "", 200)


@needs(None)
async def _sign_in(request: Request) -> Response:
    target = "/"
    try:
        check_same_origin(request.headers)
        form = await read_form(request)
        target = local_path(form.get("next", "/"))
        shown = form.get("token", "").strip()
        value = await _authentication(request).sign_in(request.scope, client_key(request.scope), shown)
    except EvalsvcError as error:
        return _form(request, target, error.message, STATUS[type(error)], error.retry_after)
    return RedirectResponse(target, 303, headers=PRIVATE | {"Set-Cookie": set_cookie(request.scope, value)})


@needs(None)
async def _sign_out(request: Request) -> Response:
    authentication = _authentication(request)
    try:
        check_same_origin(request.headers)
        form = await read_form(request)
        request.scope[CALLER] = await authentication.caller(request.scope)
        check_form_key(request, form)
    except Unauthorized:
        pass  # the session has ended already
    except EvalsvcError as error:
        return _form(request, "/", error.message, STATUS[type(error)], error.retry_after)
    authentication.sessions.end(cookie_of(request.scope))
    headers = {"Set-Cookie": set_cookie(request.scope, ""), "Clear-Site-Data": '"cache"'}
    return RedirectResponse(SIGN_IN, 303, headers=PRIVATE | headers)


def _authentication(request: Request) -> Authentication:
    authentication: Authentication = request.scope[AUTHENTICATION]
    return authentication


def _form(request: Request, target: str, refusal: str, status: int, retry_after: int | None = None) -> Response:
    content = Content("Sign in", {"next": target, "refusal": refusal, "action": SIGN_IN})
    headers = {**PAGE_HEADERS, **PRIVATE} | ({} if retry_after is None else {"Retry-After": str(retry_after)})
    return Response(html_of("sign_in.html", content, around(request)), status, media_type="text/html", headers=headers)
