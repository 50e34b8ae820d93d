"""Logs: one line per event, for people or as JSON, with fields that identify its subject and no secret for a `reader`.

A line about a shard has the ids of its evaluation, shard and attempt, and on a worker the worker's name. A line about a
request has the request's id, the client's address, and the name of the client's token. Secrets in a message are masked.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from evalsvc.access_tokens import TOKEN
from evalsvc.errors import InvalidRequest, UnknownName
from evalsvc.spec.visible_text import visible_line

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

KEY = re.compile(r"evaluation-(?P<evaluation>\d+)/shard-(?P<shard>\d+)/attempt-(?P<attempt>\d+)")
"""Name of an attempt in messages between the service and its workers; see `store.queue.attempts.Assignment`."""

_PASSWORD = re.compile(r"(?<=://)([^/\s:@\"']*):(?!\d+[/?])[^\s\"']*@")
"""A password in an address, up to the last @: a password may hold an unescaped @ or /. A number before a / is a
port."""

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Add these fields to all lines that are logged within the context."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: Any) -> None:
    """Add these fields to all lines that are logged in this context from now on."""
    _about.set({**_about.get(), **fields})


def ids_in(text: str) -> dict[str, int]:
    """Return the ids in the name of an attempt, if the text has one."""
    match = KEY.search(text)
    return {} if match is None else {name: int(value) for name, value in match.groupdict().items()}


def configure_logs(form: str, level: str) -> None:
    """Configure this process to log to standard error."""
    for setting, value, known in (("EVALSVC_LOG_FORMAT", form, FORMATS), ("EVALSVC_LOG_LEVEL", level, LEVELS)):
        if value.lower() not in known:
            raise InvalidRequest(f"{setting} is {value!r}; {UnknownName.among('choice', value, known).message}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form.lower() == "json" else TextLines())
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item.formatter, _Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries log internal events at these levels.
    root.setLevel(logging.WARNING if level.lower() in ("debug", "info") else level.upper())
    logging.getLogger("evalsvc").setLevel(level.upper())


class _Lines(logging.Formatter):
    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the fields of the context, of an attempt named in the message, and of the record itself."""
        return {**_about.get(), **ids_in(record.getMessage()), **getattr(record, "fields", {})}

    def time(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return moment.replace("+00:00", "Z")

    def trace(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[0] is None:
            return ""
        return without_secrets("".join(traceback.format_exception(*record.exc_info))).rstrip()


class TextLines(_Lines):
    """Lines for people: `TIME LEVEL logger evaluation=1 shard=2 attempt=1: message`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_word(value)}" for name, value in self.fields(record).items())
        message = visible_line(without_secrets(record.getMessage()))
        line = f"{self.time(record)} {record.levelname} {record.name}{fields}: {message}"
        return line + "".join(f"\n    {visible_line(part)}" for part in self.trace(record).splitlines())


class JsonLines(_Lines):
    """One JSON object per line: `time`, `level`, `logger`, `message`, the ids, and `trace` if there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {"time": self.time(record), "level": record.levelname.lower(), "logger": record.name}
        document |= {"message": record.getMessage(), **self.fields(record)}
        if trace := self.trace(record):
            document["trace"] = trace
        for name, value in document.items():
            if not isinstance(value, int | float | bool | None):
                document[name] = without_secrets(str(value))
        return json.dumps(document)


def without_secrets(text: str) -> str:
    """Return a text with tokens, and passwords in addresses, masked."""
    return _PASSWORD.sub(r"\1:***@", TOKEN.sub("evalsvc_***", text))


def _word(value: Any) -> str:
    text = visible_line(without_secrets(str(value)))
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
