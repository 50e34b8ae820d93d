"""The page of the errors."""

from __future__ import annotations

import inspect

from evalsvc.api.errors import PROBLEM_SCHEMA, STATUS
from evalsvc.errors import EvalsvcError, leaves
from reference_pages.markdown import code, json_block, table

INTRODUCTION = """\
# Errors

Every error of the service is a document of the type `application/problem+json` (RFC 9457). `detail` says what is
wrong, what was found and what to do. `code` is stable: programs compare `code`. Evaluations, the
[command line](cli.md) and the [Python client](client.md) use the same codes."""

RETRIES = """\
## Retries

A shard that fails with a transient error is retried after 2, 8, 32, … seconds, up to `EVALSVC_MAX_ATTEMPTS` attempts. A
shard that loses its worker or exceeds its deadline is also retried, the first time immediately. Every other error fails
the evaluation, and `POST /v1/evaluations/{evaluation_id}/retry` resumes it."""

HEAD = ("code", "status", "transient", "what")


def page() -> str:
    """Return docs/reference/errors.md."""
    parts = [INTRODUCTION, json_block("json output", PROBLEM_SCHEMA["example"])]
    for family in EvalsvcError.__subclasses__():
        rows = [_row(error) for error in leaves() if issubclass(error, family)]
        parts += [f"## {text_of(family).rstrip('.')}", table(HEAD, rows)]
    return "\n\n".join([*parts, RETRIES]) + "\n"


def text_of(error: type[EvalsvcError]) -> str:
    """Return the docstring of an error's class."""
    return inspect.cleandoc(error.__doc__ or "")


def _row(error: type[EvalsvcError]) -> tuple[str, str, str, str]:
    return code(error.code), str(STATUS[error]), "yes" if error.transient else "no", text_of(error)
