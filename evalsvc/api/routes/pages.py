"""The dashboard's pages, panels and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from evalsvc.api.errors import STATUS
from evalsvc.api.middleware.conditional import caching_headers, not_modified
from evalsvc.api.own_routes import URL, OwnRoutes, routes_alone
from evalsvc.api.routes.forms import check_form_key, read_form, visitor_of
from evalsvc.api.state import State
from evalsvc.client import Client
from evalsvc.errors import EvalsvcError, UnknownName
from evalsvc.web import vega
from evalsvc.web.page import PAGES, STATIC, Content, Surroundings, html_of, page_class
from evalsvc.web.pages.evaluation import EvaluationPage, act_on
from evalsvc.web.panel import Panel, panel_class

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy of pages: no inline script and no inline style, and nothing from another address."""

KINDS = {"html": "text/html", "json": "application/json", "csv": "text/csv", "svg": "image/svg+xml", "png": "image/png"}
"""Media types of a panel's formats."""

PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    # The default of this service, no referrer at all, has browsers send forms without their origin.
    "Referrer-Policy": "same-origin",
}

FOREVER = "public, max-age=31536000, immutable"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def add_pages(app: FastAPI, add_routes: Callable[[FastAPI], None]) -> None:
    """Add the dashboard. `add_routes` adds the REST routes to an application: the pages ask an application of these."""
    client = Client(URL, transport=OwnRoutes(routes_alone(app, add_routes)))
    for pattern in PAGES:
        app.add_route(pattern, _page(pattern, client), include_in_schema=False)
    app.add_route("/evaluations/{evaluation}/{act}", _act(client), methods=["POST"], include_in_schema=False)
    app.add_route("/panels/{file}", _panel(client), include_in_schema=False)
    app.add_route("/vega/{file}", _vega, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _page(pattern: str, client: Client) -> Handler:
    """Return the handler of a page."""

    async def show(request: Request) -> Response:
        state: State = request.app.state.state
        return await state.threads.run("page", _show_page, pattern, request, client)

    return show


def _show_page(pattern: str, request: Request, client: Client) -> Response:
    try:
        page = page_class(pattern).parse([*request.path_params.items(), *request.query_params.multi_items()])
        content = page.content(client)
    except EvalsvcError as error:
        return _problem(request, error)
    return _conditional(request, html_of(page.template, content, around(request)).encode(), "text/html")


def _act(client: Client) -> Handler:
    """Return the handler of the forms that cancel, retry and repeat an evaluation."""

    async def act(request: Request) -> Response:
        state: State = request.app.state.state
        try:
            check_form_key(request, await read_form(request))
            evaluation = EvaluationPage.parse([("evaluation", request.path_params["evaluation"])]).evaluation
            shown = await state.threads.run("page", act_on, client, evaluation, request.path_params["act"])
        except EvalsvcError as error:
            return _problem(request, error)
        return RedirectResponse(f"/evaluations/{shown}", 303, headers={"Cache-Control": "no-store"})

    return act


def _panel(client: Client) -> Handler:
    """Return the handler of all panels in all formats."""

    async def show(request: Request) -> Response:
        state: State = request.app.state.state
        return await state.threads.run("page", _show_panel, request, client)

    return show


def _show_panel(request: Request, client: Client) -> Response:
    name, _, kind = str(request.path_params["file"]).rpartition(".")
    try:
        if kind not in KINDS:
            raise UnknownName.among("format", kind, KINDS)
        query = panel_class(name).parse(request.query_params.multi_items())
        return _conditional(request, _panel_as(query.panel(client), kind, query.theme, request), KINDS[kind])
    except EvalsvcError as error:
        return _problem(request, error)


def _panel_as(panel: Panel, kind: str, theme: vega.Theme, request: Request) -> bytes:
    """Return a panel in a format.

    Raises:
        MissingPackage: `svg` and `png` need the extra `dashboard`.
    """
    if kind == "html":
        return html_of("panel.html", Content(panel.title, {"panel": panel}, panel.watched), around(request)).encode()
    if kind == "json":
        return json.dumps(panel.spec, ensure_ascii=False).encode()
    if kind == "csv":
        return panel.table.to_csv().encode()
    drawn: Literal["svg", "png"] = "svg" if kind == "svg" else "png"
    if panel.spec is None:
        raise UnknownName(f"{panel.title} has no values to draw; the table has the reasons: {panel.address('html')}")
    return vega.render(panel.spec, drawn, theme)


async def _vega(request: Request) -> Response:
    """Answer with the script that draws charts."""
    state: State = request.app.state.state
    try:
        if request.path_params["file"] != vega.script_name():
            raise UnknownName("this script belongs to another release; reload the page")
        path = await state.threads.run("page", vega.script, state.settings.data_path / "pages")
    except EvalsvcError as error:
        return _problem(request, error)
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": FOREVER})


def around(request: Request) -> Surroundings:
    """Return what the pages of this service share, for the sender of a request."""
    script = f"/vega/{vega.script_name()}" if vega.is_installed() else None
    return Surroundings(script, str(request.base_url).rstrip("/"), visitor=visitor_of(request))


def _conditional(request: Request, body: bytes, media_type: str) -> Response:
    """Return an answer, or 304 for a browser that has the same content."""
    tag = hashlib.sha256(body).hexdigest()[:32]
    if (same := not_modified(request, tag)) is not None:
        # A browser takes the headers of a 304 for the page that it has, so the page would get the policy of data.
        same.headers.update(PAGE_HEADERS)
        return same
    return Response(body, media_type=media_type, headers=caching_headers(tag) | PAGE_HEADERS)


def _problem(request: Request, error: EvalsvcError) -> Response:
    status = STATUS[type(error)]
    content = Content(f"{status}: {error.code.replace('_', ' ')}", {"detail": error.message})
    body = html_of("problem.html", content, around(request))
    return Response(body, status, media_type="text/html", headers=PAGE_HEADERS | {"Cache-Control": "no-store"})
