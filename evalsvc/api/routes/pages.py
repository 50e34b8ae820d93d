"""The dashboard's pages, panels, files and forms; signing in with a token, and signing out."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from anyio import from_thread
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from evalsvc.api.answers import caching_headers, not_modified
from evalsvc.api.errors import STATUS, bug
from evalsvc.api.middleware.access import AUTHENTICATION, CALLER, needs
from evalsvc.api.middleware.authentication import SIGN_IN, SIGN_OUT, Authentication, Caller
from evalsvc.api.middleware.browsers import check_same_origin
from evalsvc.api.middleware.rates import client_key
from evalsvc.api.middleware.sessions import cookie_of, local_path, set_cookie
from evalsvc.api.own_reader import OwnReader
from evalsvc.api.routes.evaluations import begin_evaluation, change_evaluation
from evalsvc.api.schemas import EvaluationInput
from evalsvc.api.state import State
from evalsvc.errors import EvalsvcError, Forbidden, InvalidRequest, Unauthorized, UnknownName
from evalsvc.store.queue.stages import cancel_evaluation, retry_evaluation
from evalsvc.store.queue.status import SHOWN_FAILED
from evalsvc.web import vega
from evalsvc.web.charts import Spec
from evalsvc.web.page import PAGES, STATIC, Content, Surroundings, Visitor, html_of, page_class, panel_content
from evalsvc.web.pages.evaluation import ACTS, EvaluationPage
from evalsvc.web.panel import PANELS, panel_class

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy of pages: no inline script and no inline style, and nothing from another address."""

KINDS = {"html": "text/html", "json": "application/json", "csv": "text/csv", "svg": "image/svg+xml", "png": "image/png"}
KINDS["pdf"] = "application/pdf"
PICTURES = ("svg", "png", "pdf")

PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    # The default of this service, no referrer at all, has browsers send forms without their origin.
    "Referrer-Policy": "same-origin",
}

PRIVATE = {"Cache-Control": "no-store"}
FOREVER = "public, max-age=31536000, immutable"

log = logging.getLogger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def add_pages(app: FastAPI) -> None:
    for name in PANELS:
        panel_class(name)
    for pattern in PAGES:
        # Imported here, since the threads of the first requests would import in a circle, and see half a module.
        page_class(pattern)
        app.add_route(pattern, needs("read")(_in_html(partial(_page, pattern))), include_in_schema=False)
    act = needs("submit")(_in_html(_act))
    app.add_route("/evaluations/{evaluation}/{act}", act, methods=["POST"], include_in_schema=False)
    app.add_route("/panels/{file}", needs("read")(_in_html(_panel)), include_in_schema=False)
    app.add_route("/vega/{file:path}", needs(None)(_in_html(_vega)), include_in_schema=False)
    app.mount("/static", needs(None)(StaticFiles(directory=STATIC)), name="static")
    app.add_route(SIGN_IN, _show_sign_in, methods=["GET"], include_in_schema=False)
    app.add_route(SIGN_IN, _sign_in, methods=["POST"], include_in_schema=False)
    app.add_route(SIGN_OUT, _sign_out, methods=["POST"], include_in_schema=False)


def _in_html(answer: Handler) -> Handler:
    async def handler(request: Request) -> Response:
        try:
            return await answer(request)
        except EvalsvcError as error:
            return _problem(request, error)
        except Exception as error:
            log.exception("%s %s failed by a bug", request.method, request.url.path)
            return _problem(request, bug(request, error))

    return handler


async def _page(pattern: str, request: Request) -> Response:
    state: State = request.app.state.state

    def show() -> Response:
        page = page_class(pattern).parse([*request.path_params.items(), *request.query_params.multi_items()])
        with state.reading() as session:
            content = page.content(OwnReader(state, session))
        return _conditional(request, html_of(page.template, content, around(request)), "text/html")

    return await state.threads.run("page", show)


async def _act(request: Request) -> Response:
    state: State = request.app.state.state
    check_form_key(request, await read_form(request))
    ids = str(request.path_params["evaluation"]).split(",")[:SHOWN_FAILED]
    pages = [EvaluationPage.parse([("evaluation", each)]) for each in ids]
    for page in pages:
        shown = await state.threads.run("write", _act_on, state, page.evaluation, request.path_params["act"])
    target = f"/evaluations/{shown}" if len(pages) == 1 else "/status"
    return RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})


def _act_on(state: State, evaluation: int, act: str) -> int:
    if act not in ACTS:
        raise UnknownName.among("act", act, ACTS)
    if act != "again":
        change = cancel_evaluation if act == "cancel" else retry_evaluation
        return change_evaluation(state, evaluation, change).id
    with state.reading() as session:
        before = OwnReader(state, session).evaluation(evaluation)
    body = EvaluationInput(checkpoint=before.checkpoint, suite=before.suite.name, priority=before.priority)
    return begin_evaluation(state, body)[0].id


async def _panel(request: Request) -> Response:
    state: State = request.app.state.state
    name, _, kind = str(request.path_params["file"]).rpartition(".")
    if kind not in KINDS:
        raise UnknownName.among("format", kind, KINDS)

    def read() -> tuple[str, Response | tuple[str, Spec, vega.Theme]]:
        query = panel_class(name).parse(request.query_params.multi_items())
        with state.reading() as session:
            panel = query.panel(OwnReader(state, session))
        if kind in PICTURES:
            if panel.spec is None:
                raise UnknownName(
                    f"{panel.title} has no values to draw; the table has the reasons: {query.address('html')}"
                )
            vega.check_size(panel.spec, query.address("csv"))
            given = json.dumps([vega.script_name(), kind, vega.config(query.theme), panel.picture()])
            return panel.file_name(kind), (_tag_of(given), panel.picture(), query.theme)
        if kind == "html":
            body = html_of("panel.html", panel_content(panel), around(request))
        else:
            body = panel.table.to_csv() if kind == "csv" else json.dumps(panel.spec, ensure_ascii=False)
        return panel.file_name(kind), _conditional(request, body, KINDS[kind])

    file, answer = await state.threads.run("picture" if kind in PICTURES else "page", read)
    response = answer if isinstance(answer, Response) else await _picture(request, kind, *answer)
    response.headers["Content-Disposition"] = f'inline; filename="{file}"'
    return response


async def _picture(request: Request, kind: str, tag: str, spec: Spec, theme: vega.Theme) -> Response:
    state: State = request.app.state.state

    def render() -> bytes:
        if from_thread.run(request.is_disconnected):
            return b""  # nobody reads the answer
        # Another request may have rendered the picture meanwhile.
        return state.pictures.get("", tag, lambda: vega.render(spec, kind, theme))

    if (same := not_modified(request, tag, PAGE_HEADERS)) is not None:
        return same
    if (body := state.pictures.kept("", tag)) is None:
        await request.body()  # the next message of the client is then that it has left
        body = await state.threads.run("render", render)
    return _tagged(body, tag, KINDS[kind])


async def _vega(request: Request) -> Response:
    state: State = request.app.state.state
    if request.path_params["file"] != vega.script_name():
        raise UnknownName("this script belongs to another release; reload the page")
    path = state.settings.data_path / "pages" / vega.script_name()
    if not path.is_file():
        path = await state.threads.run("render", vega.script, path.parent)
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": FOREVER})


def around(request: Request) -> Surroundings:
    script = f"/vega/{vega.script_name()}" if vega.is_installed() else None
    return Surroundings(script, str(request.base_url).rstrip("/"), visitor=visitor_of(request))


def _conditional(request: Request, body: str, media_type: str) -> Response:
    tag = _tag_of(body)
    # A browser takes the headers of a 304 for the page that it has, so the page would get the policy of data.
    return not_modified(request, tag, PAGE_HEADERS) or _tagged(body.encode(), tag, media_type)


def _tag_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _tagged(body: bytes, tag: str, media_type: str) -> Response:
    return Response(body, media_type=media_type, headers=caching_headers(tag) | PAGE_HEADERS)


def _problem(request: Request, error: EvalsvcError) -> Response:
    status = STATUS[type(error)]
    content = Content(f"{status}: {error.code.replace('_', ' ')}", {"detail": error.told})
    return _private(request, "problem.html", content, status, error.retry_after)


def _private(request: Request, template: str, content: Content, status: int, retry_after: int | None) -> Response:
    headers = PAGE_HEADERS | PRIVATE | ({} if retry_after is None else {"Retry-After": str(retry_after)})
    return Response(html_of(template, content, around(request)), status, media_type="text/html", headers=headers)


MAX_FORM, MAX_FIELDS = 20_000, 10
MEDIA_TYPE = "application/x-www-form-urlencoded"


async def read_form(request: Request) -> Mapping[str, str]:
    given, body = request.headers.get("content-type", "").partition(";")[0].strip().lower(), b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM:
                raise InvalidRequest(f"the form is larger than {MAX_FORM:,} bytes; send it from its page")
    except HTTPException as error:  # the limits of every body
        raise InvalidRequest(str(error.detail)) from None
    if body and given != MEDIA_TYPE:
        raise InvalidRequest(f"the body must be a form ({MEDIA_TYPE}), found {given[:100] or 'no content type'!r}")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise InvalidRequest(
            f"the form is not UTF-8, or has more than {MAX_FIELDS} fields; send it from its page"
        ) from None


def check_form_key(request: Request, form: Mapping[str, str]) -> None:
    """Refuse a form that a page of this session did not make. Without a session there is nothing to check: an open
    service checks where the request is from, and no other site has a token.
    """
    caller: Caller | None = request.scope.get(CALLER)
    if caller is None or caller.session is None:
        return
    if not hmac.compare_digest(form.get("key", "").encode(), caller.session.form_key.encode()):
        raise Forbidden("the form is not from this session; open the page again and send its form from there")


def visitor_of(request: Request) -> Visitor:
    caller: Caller | None = request.scope.get(CALLER)  # None on a route that needs no token
    if caller is None:
        return Visitor()
    is_open = bool(request.app.state.is_open)
    may_submit = is_open if caller.token is None else caller.token.scope != "read"
    return Visitor(
        may_submit=may_submit and not request.app.state.state.settings.read_only,
        name=caller.token.name if caller.token is not None and caller.session is not None else None,
        form_key=caller.session.form_key if caller.session is not None else "",
        may_sign_in=caller.token is None and not is_open,
    )


@needs(None)
async def _show_sign_in(request: Request) -> Response:
    target = local_path(request.query_params.get("next", "/"))
    try:
        caller: Caller = await request.scope[AUTHENTICATION].caller(request.scope)
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
        value = await request.scope[AUTHENTICATION].sign_in(request.scope, client_key(request.scope), shown)
    except EvalsvcError as error:
        return _form(request, target, error.message, STATUS[type(error)], error.retry_after)
    return RedirectResponse(target, 303, headers=PRIVATE | {"Set-Cookie": set_cookie(request.scope, value)})


@needs(None)
async def _sign_out(request: Request) -> Response:
    authentication: Authentication = request.scope[AUTHENTICATION]
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


def _form(request: Request, target: str, refusal: str, status: int, retry_after: int | None = None) -> Response:
    content = Content("Sign in", {"next": target, "refusal": refusal, "action": SIGN_IN})
    return _private(request, "sign_in.html", content, status, retry_after)
