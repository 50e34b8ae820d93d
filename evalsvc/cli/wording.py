"""Words of the command line: `--replace` for `replace=true` in messages of the service, and counted nouns."""

from __future__ import annotations

import re
from collections.abc import Callable

FIELDS = ("replace", "cancel", "force", "dry_run")
"""Fields of requests whose options have no value."""

_NAME = r"(?:\{[a-z_]+\}|[^\s/{}'\",;:()`]+)"
"""A name in the path of a route: `{run}`, or the name of a run."""

ROUTES = (
    (rf"PUT /v1/runs/({_NAME})/base", "evalsvc runs \\1 --base RUN@STEP"),
    (rf"(?:GET|PUT) /v1/runs/({_NAME})/retention", "evalsvc artifacts keep \\1"),
    (rf"PUT /v1/runs/({_NAME})/plan", "evalsvc plan \\1 SUITE/EVERY"),
    (rf"GET /v1/runs/({_NAME})/plan", "evalsvc plan \\1"),
    (rf"GET /v1/runs/({_NAME})/artifacts", "evalsvc artifacts list \\1"),
    (rf"POST /v1/runs/({_NAME})/metrics", "evalsvc import \\1 FILE"),
    (rf"GET /v1/runs/({_NAME})/metrics", "evalsvc history \\1"),
    (rf"GET /v1/runs/({_NAME})", "evalsvc runs \\1"),
    (rf"DELETE /v1/runs/({_NAME})", "evalsvc delete \\1"),
    (rf"PATCH /v1/runs/({_NAME})", "evalsvc runs \\1 --name NAME"),
    (r"GET /v1/runs", "evalsvc runs"),
    (rf"GET /v1/checkpoints/({_NAME})", "evalsvc checkpoints \\1"),
    (rf"DELETE /v1/checkpoints/{_NAME}", "evalsvc delete RUN@STEP"),
    (r"GET /v1/checkpoints", "evalsvc checkpoints"),
    (r"POST /v1/checkpoints", "evalsvc submit RUN STEP FILE"),
    (rf"GET /v1/evaluations/({_NAME})/items", "evalsvc items \\1"),
    (rf"POST /v1/evaluations/({_NAME})/(retry|cancel)", "evalsvc \\2 \\1"),
    (rf"GET /v1/evaluations/({_NAME})", "evalsvc evaluations \\1"),
    (r"GET /v1/evaluations", "evalsvc evaluations"),
    (r"POST /v1/evaluations", "evalsvc retry RUN@STEP --suite SUITE"),
    (rf"GET /v1/artifacts/({_NAME})", "evalsvc artifacts get \\1"),
    (rf"GET /v1/protocols/({_NAME})", "evalsvc protocol \\1"),
    (r"GET /v1/protocols", "evalsvc protocol"),
    (rf"PUT /v1/suites/{_NAME}", "evalsvc suites put FILE"),
    (rf"DELETE /v1/suites/({_NAME})", "evalsvc suites delete \\1"),
    (rf"GET /v1/suites/({_NAME})", "evalsvc suites show \\1"),
    (r"GET /v1/suites", "evalsvc suites list --service"),
    (r"(?:create a new upload with )?POST /v1/uploads", "send the file again: evalsvc submit RUN STEP FILE --upload"),
    (r"POST /v1/prune", "evalsvc artifacts keep --prune"),
    (r"POST /v1/uploads", "evalsvc submit RUN STEP FILE --upload"),
)
"""Routes, and the commands that use them. A longer path precedes a path with which it begins."""

_FLAG = "|".join(FIELDS)
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(rf"(--[a-z-]+) \((?:{_FLAG})=true\)|\b(?:{_FLAG})=true \((--[a-z-]+)\)"), r"\1\2"),
    (re.compile(rf"\b({_FLAG})(?:=true\b|: true\b)"), lambda match: "--" + match[1].replace("_", "-")),
    (re.compile(r'\bsuites=\["NAME"\]'), "--suite NAME"),
    (re.compile(r"\bspool=(link|copy)\b"), r"--spool \1"),
    (re.compile(r"\b(from|to)=(?=\d)"), r"--\1 "),
    (re.compile(r"\bx=step\b"), "--x step"),
    (re.compile(r"\??\breplace_shipped=true\b"), "--replace-shipped"),
    *((re.compile(route), command) for route, command in ROUTES),
]
_PLACEHOLDER = re.compile(r"(evalsvc [^\n`{}]{1,80})\{([a-z_]{1,40})\}")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a duration in at most two units: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def in_options(message: str) -> str:
    """Return a message with fields and routes replaced by options and commands."""
    for pattern, replacement in _RULES:
        message = pattern.sub(replacement, message)
    return _PLACEHOLDER.sub(lambda match: match[1] + match[2].upper(), message)
