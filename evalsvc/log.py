"""Logs: one line for each thing that happened, for people or as JSON, with what it is about beside it.

A line about a shard has the ids of its evaluation, of itself and of the attempt, and on a worker the worker's. A line
that a request causes has the request's id, the client's address, and the name of the token that the client showed.
Secrets that a message quotes are blotted out, whoever wrote it.
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
"""How an attempt is called between the service and its workers; see `store.queue.shards.Assignment`."""

_PASSWORD = re.compile(r"(?<=://)([^/\s:@\"']*):(?!\d+[/?])[^\s\"']*@")
"""Up to the last @: one in a password, or a /, may have been left as it is. A number before a / is a port."""

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What is logged within is about these."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: Any) -> None:
    """What is logged in this context from now on is about these."""
    _about.set({**_about.get(), **fields})


def ids_in(text: str) -> dict[str, int]:
    """The ids in the name of an attempt, where the text has one."""
    found = KEY.search(text)
    return {} if found is None else {name: int(value) for name, value in found.groupdict().items()}


def configure_logs(form: str, level: str) -> None:
    """Have this process log to its error stream.

    Raises:
        UnknownName: no such format or level.
    """
    for setting, value, known in (("EVALSVC_LOG_FORMAT", form, FORMATS), ("EVALSVC_LOG_LEVEL", level, LEVELS)):
        if value.lower() not in known:
            raise InvalidRequest(f"{setting} is {value!r}; {UnknownName.among('choice', value, known).message}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form.lower() == "json" else TextLines())
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item.formatter, _Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries tell of their own lives at these levels.
    root.setLevel(logging.WARNING if level.lower() in ("debug", "info") else level.upper())
    logging.getLogger("evalsvc").setLevel(level.upper())


class _Lines(logging.Formatter):
    """What both forms have in common: when, how grave, what it is about."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Of the context; of the message, where it names an attempt; and what its writer gave beside it."""
        message = record.getMessage()
        return {**_about.get(), **ids_in(message), **getattr(record, "fields", {})}

    def time(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return moment.replace("+00:00", "Z")

    def trace(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[0] is None:
            return ""
        return without_secrets("".join(traceback.format_exception(*record.exc_info))).rstrip()


class TextLines(_Lines):
    """`TIME LEVEL logger evaluation=1 shard=2 attempt=1: message`; a trace follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_word(value)}" for name, value in self.fields(record).items())
        message = visible_line(without_secrets(record.getMessage()))
        line = f"{self.time(record)} {record.levelname} {record.name}{fields}: {message}"
        trace = self.trace(record)
        return line + "".join(f"\n    {visible_line(part)}" for part in trace.splitlines())


class JsonLines(_Lines):
    """An object a line: `time`, `level`, `logger`, `message`, the ids, and `trace` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": self.time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields(record),
        }
        if trace := self.trace(record):
            document["trace"] = trace
        plain = (int, float, bool, type(None))
        kept = {
            name: value if isinstance(value, plain) else without_secrets(str(value)) for name, value in document.items()
        }
        return json.dumps(kept)


def without_secrets(text: str) -> str:
    """A text in which tokens, and passwords in addresses, are blotted out."""
    return _PASSWORD.sub(r"\1:***@", TOKEN.sub("evalsvc_***", text))


def _word(value: Any) -> str:
    text = visible_line(without_secrets(str(value)))
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
