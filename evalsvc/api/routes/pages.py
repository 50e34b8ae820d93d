"""The dashboard's pages, panels and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from anyio import from_thread
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
from evalsvc.web.panel import PANELS, panel_class

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
    for name in PANELS:
        panel_class(name)
    for pattern in PAGES:
        # Imported here, since the threads of the first requests would import in a circle, and see half a module.
        page_class(pattern)
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
    return _conditional(request, html_of(page.template, content, around(request)), "text/html")


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
        try:
            draws = request.path_params["file"].endswith((".svg", ".png"))
            shown = await state.threads.run("picture" if draws else "page", _show_panel, request, client)
            return shown if isinstance(shown, Response) else await shown(request)
        except EvalsvcError as error:
            return _problem(request, error)

    return show


def _show_panel(request: Request, client: Client) -> Response | Handler:
    """Return a panel as an answer, or what answers with its picture.

    Raises:
        UnknownName, InvalidRequest: there is no such panel, or nothing or too much to draw.
        MissingPackage: pictures need the extra `dashboard`.
    """
    name, _, kind = str(request.path_params["file"]).rpartition(".")
    if kind not in KINDS:
        raise UnknownName.among("format", kind, KINDS)
    query = panel_class(name).parse(request.query_params.multi_items())
    panel = query.panel(client)
    if kind == "html":
        body = html_of("panel.html", Content(panel.title, {"panel": panel}, panel.watched), around(request))
    elif kind == "json":
        body = json.dumps(panel.spec, ensure_ascii=False)
    elif kind == "csv":
        body = panel.table.to_csv()
    else:
        release = vega.script_name()
        if (spec := panel.spec) is None:
            raise UnknownName(
                f"{panel.title} has no values to draw; the table has the reasons: {panel.address('html')}"
            )
        vega.check_size(spec, panel.address("csv"))
        tag = _tag_of(json.dumps([release, kind, vega.config(query.theme), spec]))
        render = partial(vega.render, spec, "svg" if kind == "svg" else "png", query.theme)
        return partial(_picture, tag=tag, media_type=KINDS[kind], render=render)
    return _conditional(request, body, KINDS[kind])


async def _picture(request: Request, *, tag: str, media_type: str, render: Callable[[], bytes]) -> Response:
    """Answer with a chart as a picture. It is rendered if neither the browser nor the service has it.

    Raises:
        RateLimited: too many pictures wait to be rendered.
    """
    state: State = request.app.state.state

    def render_once() -> bytes:
        if from_thread.run(request.is_disconnected):
            return b""  # nobody reads the answer
        return state.pictures.get("", tag, render)  # another request may have rendered the picture meanwhile

    if (same := _same(request, tag)) is not None:
        return same
    if (body := state.pictures.kept("", tag)) is None:
        await request.body()  # the next message of the client is then that it has left
        body = await state.threads.run("render", render_once)
    return _tagged(body, tag, media_type)


async def _vega(request: Request) -> Response:
    """Answer with the script that draws charts."""
    state: State = request.app.state.state
    try:
        if request.path_params["file"] != vega.script_name():
            raise UnknownName("this script belongs to another release; reload the page")
        path = state.settings.data_path / "pages" / vega.script_name()
        if not path.is_file():
            path = await state.threads.run("render", vega.script, path.parent)
    except EvalsvcError as error:
        return _problem(request, error)
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": FOREVER})


def around(request: Request) -> Surroundings:
    """Return what the pages of this service share, for the sender of a request."""
    script = f"/vega/{vega.script_name()}" if vega.is_installed() else None
    return Surroundings(script, str(request.base_url).rstrip("/"), visitor=visitor_of(request))


def _conditional(request: Request, body: str, media_type: str) -> Response:
    """Return an answer, or 304 for a browser that has the same content."""
    tag = _tag_of(body)
    return _same(request, tag) or _tagged(body.encode(), tag, media_type)


def _tag_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _same(request: Request, tag: str) -> Response | None:
    """Return a 304 for a browser that has the content with this tag."""
    if (same := not_modified(request, tag)) is not None:
        # A browser takes the headers of a 304 for the page that it has, so the page would get the policy of data.
        same.headers.update(PAGE_HEADERS)
    return same


def _tagged(body: bytes, tag: str, media_type: str) -> Response:
    return Response(body, media_type=media_type, headers=caching_headers(tag) | PAGE_HEADERS)


def _problem(request: Request, error: EvalsvcError) -> Response:
    status = STATUS[type(error)]
    content = Content(f"{status}: {error.code.replace('_', ' ')}", {"detail": error.message})
    body = html_of("problem.html", content, around(request))
    later = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return Response(body, status, media_type="text/html", headers=PAGE_HEADERS | {"Cache-Control": "no-store"} | later)
