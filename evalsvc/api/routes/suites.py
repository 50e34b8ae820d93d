"""Suites: those that were put come before a file of the folder, and that before a shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from evalsvc.errors import Conflict, EvalsvcError, InvalidSuite, UnknownName, WrongState
from evalsvc.spec import documents
from evalsvc.spec.paths import local_data
from evalsvc.spec.suite import MAX_HEADLINE, SHIPPED_SUITES, Suite, load_suite, parse_suite, suite_files
from evalsvc.store.lists.pages import page_of_names
from evalsvc.store.lists.suites import loaded_suites
from evalsvc.store.suites import delete_suite, kept_suite, kept_suites, put_suite
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
        "headline": {"type": "array", "maxItems": MAX_HEADLINE, "items": {"type": "string"}},
        "tasks": {"type": "array", "minItems": 1, "items": _TASK},
    },
}

FileSource = Literal["folder", "shipped"]

Source = Literal["put"] | FileSource


@dataclass(frozen=True)
class Entry:
    """A suite that can be named; it is read only when it is asked for."""

    source: Source
    load: Callable[[], Suite]
    shadows: FileSource | None = None
    """Source of a suite of the same name that this suite hides."""


def suite_entries(session: Session, settings: Settings) -> dict[str, Entry]:
    """Every suite, by name. None is read, so that a broken one disturbs no other."""
    entries = {}
    for name, path in suite_files(settings.suites_path).items():
        source = _source_of(path)
        is_hiding = source == "folder" and (SHIPPED_SUITES / path.name).exists()
        entries[name] = Entry(source, partial(load_suite, path), "shipped" if is_hiding else None)
    for name in kept_suites(session):
        hidden = entries.get(name)
        shadows = None if hidden is None or hidden.source == "put" else hidden.source
        entries[name] = Entry("put", partial(_load_kept, session, name), shadows)
    return entries


def _source_of(path: Path) -> FileSource:
    return "shipped" if path.parent == SHIPPED_SUITES else "folder"


def _load_kept(session: Session, name: str) -> Suite:
    return parse_suite(kept_suite(session, name), name)


def find_suite(session: Session, settings: Settings, name: str) -> Suite:
    """A suite by its name; UnknownName with near misses, InvalidSuite where it is broken."""
    return _find_entry(session, settings, name).load()


def current_digest(session: Session, settings: Settings, name: str) -> str | None:
    """Return the digest of the suite that has a name; None where no suite has the name, or the suite is broken."""
    try:
        return find_suite(session, settings, name).digest
    except EvalsvcError:
        return None


def _find_entry(session: Session, settings: Settings, name: str) -> Entry:
    entries = suite_entries(session, settings)
    if name not in entries:
        raise UnknownName.among("suite", name, entries, "PUT /v1/suites/{name} makes one")
    return entries[name]


@router.get(
    "",
    summary="Every suite that can be named",
    description="A suite that was put hides a file of the same name in the service's folder of suites, and the file "
    "hides a suite that comes with evalsvc: `source` says where a suite is from, `shadows` which other one is hidden.",
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
    description="As the suite is now; `GET /v1/evaluations/{evaluation_id}/suite` has the suite that an evaluation "
    "began with.",
    responses=document(200, "The suite.", documents.Suite),
)
def get_suite(name: Name, state: CurrentState) -> JsonAnswer:
    with state.reading() as session:
        entry = _find_entry(session, state.settings, name)
        return JsonAnswer(_view(entry.load(), entry))


@router.put(
    "/{name}",
    summary="Keep a suite under a name",
    description="The body is the suite as YAML or JSON. Evaluations that have begun keep the suite they began with. "
    "The name of a suite that comes with evalsvc is refused, unless `replace_shipped` is set; `shadows` of the answer "
    "then says so.",
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
        content = _view(suite, _find_entry(session, state.settings, name))
    return JsonAnswer(content, 201 if created else 200)


@router.delete(
    "/{name}",
    summary="Delete a suite that was put",
    description="Evaluations keep the suite that they began with. If the deleted suite hid a suite of the folder or of "
    "evalsvc, that one has the name again, as `uncovered` says. The deletion is refused with 409 while the plan of a "
    "run names the suite, and for suites that were not put.",
    responses=document(200, "The deleted suite.", documents.DeletedSuite),
)
def remove_suite(name: Name, state: CurrentState) -> JsonAnswer:
    with state.writing() as session:
        entry = _find_entry(session, state.settings, name)
        if entry.source != "put":
            where = "comes with evalsvc" if entry.source == "shipped" else "is a file in the service's folder of suites"
            do = "only suites that were put can be deleted" if entry.source == "shipped" else "remove the file there"
            raise WrongState(f"suite {name!r} {where}; {do}")
        digest = delete_suite(session, name)
    return JsonAnswer(documents.DeletedSuite(name=name, digest=digest, uncovered=entry.shadows))


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
    more = {"shadows": entry.shadows, "headline": list(suite.headline), "tasks": tasks}
    return document_of(documents.SuiteSummary, suite, source=entry.source, **more)


def _view(suite: Suite, entry: Entry) -> documents.Suite:
    more = {"shadows": entry.shadows, "headline": list(suite.headline), "tasks": suite.tasks_to_json()}
    return document_of(documents.Suite, suite, source=entry.source, **more)
