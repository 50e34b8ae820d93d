"""Routes of suites. A stored suite hides a file in the folder of suites, and a file hides a suite of evalsvc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from evalsvc.api.answers import JsonAnswer, answer
from evalsvc.api.middleware.access import needs
from evalsvc.api.middleware.bodies import check_storable, parse_json
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import PageQuery, RawBody, SuitePath
from evalsvc.api.state import CurrentState
from evalsvc.config import Settings
from evalsvc.errors import Conflict, EvalsvcError, InvalidSuite, UnknownName, WrongState
from evalsvc.spec import documents
from evalsvc.spec.paths import local_data
from evalsvc.spec.suite import MAX_HEADLINE, SHIPPED_SUITES, Suite, load_suite, parse_suite, suite_files
from evalsvc.store.pages import page_of_names
from evalsvc.store.suites import delete_suite, kept_suite, kept_suites, loaded_suites, put_suite
from evalsvc.store.views import document_of

router = router_of(prefix="/v1/suites", tags=["suites"])

_INPUT = {"tasks": [{"kind": "loss", "data": "datasets:heldout_text.jsonl"}]}

_TASK = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}}
"""The schema of a task. The parameters depend on the kind."""

_INPUT_SCHEMA = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "description": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "headline": {
            "anyOf": [{"type": "array", "maxItems": MAX_HEADLINE, "items": {"type": "string"}}, {"type": "null"}]
        },
        "tasks": {"type": "array", "minItems": 1, "items": _TASK},
    },
}

FileSource = Literal["folder", "shipped"]

Source = Literal["put"] | FileSource


@dataclass(frozen=True)
class Entry:
    source: Source
    load: Callable[[], Suite]
    """A function that reads the suite, and raises InvalidSuite for a broken suite."""
    shadows: FileSource | None = None
    """The source of the suite of the same name that this suite hides."""


def suite_entries(session: Session, settings: Settings) -> dict[str, Entry]:
    """Return all suites by name, without reading them, so that a broken suite affects no other suite."""
    entries = {}
    for name, path in suite_files(settings.suites_path).items():
        source: FileSource = "shipped" if path.parent == SHIPPED_SUITES else "folder"
        is_hiding = source == "folder" and (SHIPPED_SUITES / path.name).exists()
        entries[name] = Entry(source, partial(load_suite, path), "shipped" if is_hiding else None)
    for name in kept_suites(session):
        hidden = entries.get(name)
        shadows = None if hidden is None or hidden.source == "put" else hidden.source
        entries[name] = Entry("put", partial(_load_kept, session, name), shadows)
    return entries


def _load_kept(session: Session, name: str) -> Suite:
    return parse_suite(kept_suite(session, name), name)


def find_suite(session: Session, settings: Settings, name: str) -> Suite:
    return _find_entry(session, settings, name).load()


def current_digest(session: Session, settings: Settings, name: str) -> str | None:
    try:
        return find_suite(session, settings, name).digest
    except EvalsvcError:
        return None


def _find_entry(session: Session, settings: Settings, name: str) -> Entry:
    entries = suite_entries(session, settings)
    if name not in entries:
        raise UnknownName.among("suite", name, entries, "PUT /v1/suites/{name} stores a suite")
    return entries[name]


@router.get(
    "",
    summary="List suites",
    description="A suite that was stored with PUT hides a file of the same name in the service's folder of suites, "
    "and such a file hides a suite that comes with evalsvc. `source` is the origin of a suite, and `shadows` is the "
    "origin of the hidden suite. A broken suite has an `error` in place of its tasks.",
    responses={200: answer(documents.Suites, "A page of the suites, ordered by name.")},
)
@needs("read")
def list_suites(query: Annotated[PageQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        entries = suite_entries(session, state.settings)
        names, next_cursor = page_of_names(entries, ["suites"], query.page())
        _rows = loaded_suites(session, names)  # keeps the rows in the session while the suites are read
        suites = [_summary(name, entries[name]) for name in names]
        return JsonAnswer(documents.Suites(suites=suites, next_cursor=next_cursor))


@router.get(
    "/{name}",
    summary="Get a suite with its tasks and all parameters",
    description="The answer is the current suite. `GET /v1/evaluations/{evaluation_id}/suite` has the suite that an "
    "evaluation began with.",
    responses={200: answer(documents.Suite, "The suite.")},
)
@needs("read")
def get_suite(name: SuitePath, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        entry = _find_entry(session, state.settings, name)
        return JsonAnswer(_view(entry.load(), entry))


@router.put(
    "/{name}",
    summary="Store a suite under a name",
    description="The body is the suite as YAML or JSON. Existing evaluations keep the suite that they began with. The "
    "name of a suite that comes with evalsvc is refused with 409 unless `replace_shipped` is true; `shadows` of the "
    "answer is then `shipped`.",
    status_code=201,
    responses={
        201: answer(documents.Suite, "The stored suite; the name is new."),
        200: answer(documents.Suite, "The stored suite, which replaced a suite of the same name."),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                media_type: {"schema": _INPUT_SCHEMA, "example": _INPUT}
                for media_type in ("application/yaml", "application/json")
            },
        }
    },
)
@needs("submit")
def keep_suite(
    name: SuitePath,
    request: Request,
    body: RawBody,
    state: CurrentState,
    replace_shipped: Annotated[
        bool, Query(description="Hide a suite that comes with evalsvc, for all clients that name it.")
    ] = False,
) -> JsonAnswer:
    file = None if replace_shipped else suite_files(state.settings.suites_path).get(name)
    if file is not None and file.parent == SHIPPED_SUITES:
        raise Conflict(
            f"{name!r} is a suite that comes with evalsvc, and every client that names it would get the new suite; use "
            f"another name, such as my-{name}, or add ?replace_shipped=true"
        )
    suite = parse_suite(
        _content(body, name, request.headers.get("content-type", "")), name, allowed=partial(local_data, state.settings)
    )
    try:
        check_storable(suite.to_json())
    except ValueError as error:
        raise InvalidSuite(f"suite {name!r}: {error}") from None
    with state.writing() as session:
        created = put_suite(session, suite)
        content = _view(suite, _find_entry(session, state.settings, name))
    return JsonAnswer(content, 201 if created else 200)


@router.delete(
    "/{name}",
    summary="Delete a stored suite",
    description="Existing evaluations keep the suite that they began with. If the deleted suite hid a suite of the "
    "folder or of evalsvc, the name stands for the hidden suite again, and `uncovered` is its origin. The deletion is "
    "refused with 409 while the plan of a run names the suite, and for suites that were not stored with PUT.",
    responses={200: answer(documents.DeletedSuite, "The deleted suite.")},
)
@needs("admin")
def remove_suite(name: SuitePath, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        entry = _find_entry(session, state.settings, name)
        if entry.source != "put":
            reasons = {
                "shipped": "comes with evalsvc; only suites that were stored with PUT can be deleted",
                "folder": "is a file in the service's folder of suites; remove the file",
            }
            raise WrongState(f"suite {name!r} {reasons[entry.source]}")
        digest = delete_suite(session, name)
    return JsonAnswer(documents.DeletedSuite(name=name, digest=digest, uncovered=entry.shadows))


def _content(body: bytes, name: str, content_type: str) -> Any:
    """Parse a body as JSON if its Content-Type or first character says so; otherwise return the body for YAML. JSON
    with tabs is not valid YAML."""
    says_json = "json" in content_type
    if says_json or body.lstrip().startswith(b"{"):
        try:
            return parse_json(body)
        except HTTPException as error:
            raise InvalidSuite(f"suite {name!r}: {error.detail}") from None
        except ValueError as error:
            if says_json:
                raise InvalidSuite(f"suite {name!r} is not valid JSON: {error}") from None
    return body


def _summary(name: str, entry: Entry) -> documents.SuiteSummary | documents.BrokenSuite:
    try:
        suite = entry.load()
    except EvalsvcError as error:
        problem = documents.Error(code=error.code, message=error.message)
        return documents.BrokenSuite(name=name, source=entry.source, error=problem)
    tasks = [task.name for task in suite.tasks]
    fields = {"shadows": entry.shadows, "headline": list(suite.headline), "tasks": tasks}
    return document_of(documents.SuiteSummary, suite, source=entry.source, **fields)


def _view(suite: Suite, entry: Entry) -> documents.Suite:
    fields = {"shadows": entry.shadows, "headline": list(suite.headline), "tasks": suite.tasks_to_json()}
    return document_of(documents.Suite, suite, source=entry.source, **fields)
