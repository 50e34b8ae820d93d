"""Answers for errors: problem documents (RFC 9457) `{type, title, status, detail, code}`."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from evalsvc import errors
from evalsvc.api.middleware.browsers import SECURITY_HEADERS
from evalsvc.api.middleware.request_ids import HEADER, request_id_of
from evalsvc.errors import EvalsvcError

STATUS: dict[type[EvalsvcError], int] = {
    error: status
    for status, kinds in {
        401: (errors.Unauthorized,),
        403: (errors.Forbidden, errors.CheckpointNotAllowed),
        404: (errors.UnknownName, errors.UploadNotFound),
        409: (
            *(errors.Conflict, errors.WrongState, errors.TargetNotEmpty, errors.NotComparable, errors.UploadConflict),
            *(errors.CheckpointChanged, errors.DataChanged, errors.PlanOutdated, errors.Cancelled),
        ),
        410: (errors.CheckpointGone, errors.ArtifactPruned, errors.ItemsLost),
        422: (
            *(errors.InvalidRequest, errors.InvalidSuite, errors.InvalidLayout, errors.InvalidModelConfig),
            *(errors.InvalidData, errors.BackupUnusable, errors.CheckpointNotFound, errors.NotACheckpoint),
            *(errors.UnsafeCheckpoint, errors.ShardedCheckpoint, errors.CheckpointMismatch, errors.UnsupportedModel),
            errors.NonFinite,
        ),
        429: (errors.RateLimited, errors.RunBehind),
        460: (errors.ChecksumMismatch,),
        500: (errors.InternalError,),
        503: (
            *(errors.OutOfMemory, errors.WorkerDied, errors.PortInUse, errors.DataDirectoryUnusable),
            *(errors.DatabaseUnusable, errors.DatabaseInUse, errors.ReadOnly, errors.SchemaVersionMismatch),
            *(errors.SourceUnreachable, errors.MissingPackage, errors.AssetMissing, errors.AssetCorrupt),
            *(errors.NotReady, errors.ServiceUnreachable),
        ),
        504: (errors.DeadlineExceeded,),
        507: (errors.ArtifactNotWritten, errors.CacheFull, errors.StorageFull),
    }.items()
    for error in kinds
}
"""The HTTP status of every error class. A test checks that no class is missing."""

TITLES = {460: "Checksum Mismatch"}
"""Titles of statuses that HTTP does not define. The tus protocol defines 460."""

NAMED, SHOWN, MAX_DETAIL = 10, 120, 4000
"""The most findings that an error message lists, characters of a value that it shows, and characters of a detail."""

PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "The problem, what was found, and what to do."},
        "code": {"type": "string", "description": "A stable code, for programs."},
    },
    "example": {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no suite is named 'los'; did you mean 'loss'? available: loss",
        "code": "unknown_name",
    },
}

PROBLEM_CONTENT: dict[str, Any] = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The client can fix the request; `detail` says how.", "content": PROBLEM_CONTENT},
    "503": {"description": "The database does not answer; send the request again later.", "content": PROBLEM_CONTENT},
}


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(EvalsvcError, _on_evalsvc_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


def problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    if len(detail) > MAX_DETAIL:  # the detail quotes the request
        detail = f"{detail[:MAX_DETAIL]} … ({len(detail):,} characters)"
    content = {
        "type": "about:blank",
        "title": TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def _on_evalsvc_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EvalsvcError)
    return problem_of(error)


def problem_of(error: EvalsvcError) -> JSONResponse:
    headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return problem(STATUS[type(error)], error.code, error.told, headers)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    findings = error.errors()
    content_type = request.headers.get("content-type", "")
    if any(item["loc"] == ("body",) for item in findings) and "json" not in content_type:
        detail = (
            f"the body must be JSON, found {content_type or 'no Content-Type'}; send Content-Type: application/json"
        )
    else:
        detail = joined([_finding(item) for item in findings])
    return problem(422, errors.InvalidRequest.code, detail)


def _finding(item: ErrorDetails) -> str:
    field = ".".join(str(part) for part in item["loc"][1:])
    if item["type"] == "json_invalid":
        return f"the body is not JSON: {item['ctx']['error'].lower()} at character {field}"
    if item["type"] == "missing":
        return f"{field} is missing" if field else f"the {item['loc'][0]} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    near: Sequence[str] = ()
    if item["type"] == "literal_error":
        near = errors.near_misses(str(item["input"]), re.findall("'([^']*)'", item["ctx"]["expected"]))
    advice = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{field or 'the body'}: {message[:1].lower()}{message[1:]}, found {shown(item['input'])}{advice}"


def joined(findings: Sequence[str]) -> str:
    more = len(findings) - NAMED
    return "; ".join(findings[:NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def shown(value: object) -> str:
    text = repr(value[:SHOWN]) if isinstance(value, str) else _BEGINNINGS.repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


_BEGINNINGS = reprlib.Repr()


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    code = (errors.RateLimited if error.status_code == 429 else errors.InvalidRequest).code
    if error.status_code == 404:
        code = errors.UnknownName.code
        slash = (
            "give the address of the service without a slash at its end, or see " if "//" in request.url.path else ""
        )
        detail = f"there is nothing at {request.url.path}; {slash}/docs lists all routes"
    elif error.status_code == 405:
        allowed = _allowed(request) or (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not possible at {request.url.path}; use one of: {allowed}"
        return problem(405, code, detail, {"Allow": allowed})
    return problem(error.status_code, code, detail, error.headers)


def _allowed(request: Request) -> str:
    """Return all methods of a path. The router's own answer only has the methods of the first route at the path."""
    paths = request.app.openapi()["paths"]
    requested = request.url.path
    matching = [requested] if requested in paths else [path for path in paths if compile_path(path)[0].match(requested)]
    methods = {method.upper() for path in matching for method in paths[path]}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def bug(request: Request, error: Exception) -> errors.InternalError:
    return errors.InternalError(
        f"{request.method} {request.url.path} failed by a bug in evalsvc ({type(error).__name__}); "
        "report the bug with the traceback from the service's log"
    )


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    # After the answer, the framework raises the error again, and the server logs the traceback.
    return problem(
        500,
        errors.InternalError.code,
        bug(request, error).message,
        # The middleware that adds these headers to other answers does not see this answer.
        {**SECURITY_HEADERS, HEADER: request_id_of(request.scope)},
    )
