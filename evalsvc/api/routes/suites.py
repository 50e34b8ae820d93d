"""Suites: those that were put come before a file of the folder, and that before a shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from sqlalchemy.orm import Session

from evalsvc.api.errors import PROBLEMS
from evalsvc.api.json_answer import JsonAnswer, document
from evalsvc.api.list_queries import PageQuery
from evalsvc.api.routing import router_of
from evalsvc.api.schemas import Name, RawBody, check_storable
from evalsvc.api.state import CurrentState
from evalsvc.config import Settings
from evalsvc.errors import Conflict, EvalsvcError, InvalidSuite, UnknownName
from evalsvc.spec import documents
from evalsvc.spec.paths import local_data
from evalsvc.spec.suite import SHIPPED_SUITES, Suite, load_suite, parse_suite, suite_files
from evalsvc.store.lists.pages import page_of_names
from evalsvc.store.lists.suites import loaded_suites
from evalsvc.store.suites import kept_suite, kept_suites, put_suite
from evalsvc.store.views import document_of

router = router_of(prefix="/v1/suites", tags=["suites"], responses=PROBLEMS)

_INPUT = {"tasks": [{"kind": "loss", "data": "datasets:heldout_text.jsonl"}]}

_TASK = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}}
"""A task's kind has its own parameters."""

_INPUT_SCHEMA = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "description": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tasks": {"type": "array", "minItems": 1, "items": _TASK},
    },
}

Source = Literal["put", "folder", "shipped"]


@dataclass(frozen=True)
class Entry:
    """A suite that can be named; it is read only when it is asked for."""

    source: Source
    load: Callable[[], Suite]


def suite_entries(session: Session, settings: Settings) -> dict[str, Entry]:
    """Every suite, by name. None is read, so that a broken one disturbs no other."""
    entries = {}
    for name, path in suite_files(settings.suites_path).items():
        source: Source = "shipped" if path.parent == SHIPPED_SUITES else "folder"
        entries[name] = Entry(source, partial(load_suite, path))
    for name in kept_suites(session):
        entries[name] = Entry("put", partial(_load_kept, session, name))
    return entries


def _load_kept(session: Session, name: str) -> Suite:
    return parse_suite(kept_suite(session, name), name)


def find_suite(session: Session, settings: Settings, name: str) -> Suite:
    """A suite by its name; UnknownName with near misses, InvalidSuite where it is broken."""
    return _find_entry(session, settings, name).load()


def _find_entry(session: Session, settings: Settings, name: str) -> Entry:
    entries = suite_entries(session, settings)
    if name not in entries:
        raise UnknownName.among("suite", name, entries, "PUT /v1/suites/{name} makes one")
    return entries[name]


@router.get(
    "",
    summary="Every suite that can be named",
    responses=document(
        200, "A page of the suites, by name. A broken suite has an error and disturbs no other.", documents.Suites
    ),
)
def list_suites(query: Annotated[PageQuery, Query()], state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        entries = suite_entries(session, state.settings)
        names, next_cursor = page_of_names(entries, ["suites"], query.page())
        _kept = loaded_suites(session, names)
        suites = [_summary(name, entries[name]) for name in names]
        return JsonAnswer(documents.Suites(suites=suites, next_cursor=next_cursor))


@router.get(
    "/{name}",
    summary="A suite with its tasks and all their parameters",
    responses=document(200, "The suite.", documents.Suite),
)
def get_suite(name: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        entry = _find_entry(session, state.settings, name)
        suite = entry.load()
        return JsonAnswer(_view(suite, entry.source))


@router.put(
    "/{name}",
    summary="Keep a suite under a name",
    description="The body is the suite as YAML or JSON. Evaluations that have begun keep the suite they began with. "
    "The name of a suite that comes with evalsvc is refused, unless `replace_shipped` is set.",
    status_code=201,
    responses=document(201, "The name is new.", documents.Suite)
    | document(200, "The name was there.", documents.Suite),
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
def keep_suite(
    name: Name,
    request: Request,
    body: RawBody,
    state: CurrentState,
    replace_shipped: Annotated[
        bool, Query(description="Also where the name is that of a suite which comes with evalsvc, for all who name it.")
    ] = False,
) -> JsonAnswer:
    if not replace_shipped:
        _require_own_name(name, state.settings)
    suite = parse_suite(
        _content(body, name, request.headers.get("content-type", "")), name, allowed=partial(local_data, state.settings)
    )
    try:
        check_storable(suite.to_json())
    except ValueError as error:
        raise InvalidSuite(f"suite {name!r}: {error}") from None
    with state.writing() as session:
        created = put_suite(session, suite)
    return JsonAnswer(_view(suite, "put"), 201 if created else 200)


def _require_own_name(name: str, settings: Settings) -> None:
    """Raise Conflict for the name of a shipped suite: everyone who names it means that one."""
    file = suite_files(settings.suites_path).get(name)
    if file is not None and file.parent == SHIPPED_SUITES:
        raise Conflict(
            f"{name!r} is a suite that comes with evalsvc, and all who name it would get this one in its place; PUT it "
            f"under another name, such as my-{name}, or add ?replace_shipped=true"
        )


def _content(body: bytes, name: str, content_type: str) -> Any:
    """JSON that says so or looks so is read as JSON: as YAML it would stumble over tabs."""
    says_json = "json" in content_type
    if says_json or body.lstrip().startswith(b"{"):
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
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
    return document_of(documents.SuiteSummary, suite, source=entry.source, tasks=tasks)


def _view(suite: Suite, source: Source) -> documents.Suite:
    return document_of(documents.Suite, suite, tasks=suite.tasks_to_json(), source=source)
