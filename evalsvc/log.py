"""Logs: one line per event, for people or as JSON, with fields that identify its subject and no secret for a `reader`.

A line about a shard has the ids of its evaluation, shard and attempt, and on a worker the worker's name. A line about a
request has the request's id, the client's address, and the name of the client's token. Secrets in a message are masked.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any

from evalsvc.access_tokens import TOKEN
from evalsvc.config import writes_to_journal
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
    handler.addFilter(_tame)
    if form.lower() == "json":  # nothing else writes lines
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda found: _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    adopt_dask()
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item.formatter, _Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries log internal events at these levels.
    root.setLevel(logging.WARNING if level.lower() in ("debug", "info") else level.upper())
    logging.getLogger("evalsvc").setLevel(level.upper())


def adopt_dask() -> None:
    """Have the loggers of Dask write errors alone, by the process's own handler. Dask sets up others itself."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True


def _tame(record: logging.LogRecord) -> bool:
    """Lower the level of Dask's errors, which the service recovers from, and name those without a message."""
    if record.name.partition(".")[0] != "distributed" or record.levelno <= logging.WARNING:
        return True
    record.levelno, record.levelname = logging.WARNING, "WARNING"
    if not record.getMessage().strip():
        record.msg, record.args = "an operation of Dask failed, and is repeated where it matters", None
    return logging.getLogger().level <= logging.WARNING


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt) or error is None:
        sys.__excepthook__(kind, error or kind(), trace)
    else:
        logging.getLogger("evalsvc").error("an error was not handled", exc_info=(kind, error, trace))


def log_line(message: str, level: int = logging.INFO) -> str | None:
    """Return a line of the process's log in JSON; None if the process does not log in JSON."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            return handler.formatter.format(logging.LogRecord("evalsvc", level, "", 0, message, (), None))
    return None


PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Priorities of the system's log by level."""


class _Lines(logging.Formatter):
    """The common part of both formats: time, level, and fields; and the priority before each line for the journal."""

    def __init__(self) -> None:
        super().__init__()
        self._for_journal = writes_to_journal()

    def with_priority(self, record: logging.LogRecord, text: str) -> str:
        if not self._for_journal:
            return text
        return "\n".join(f"<{PRIORITIES.get(record.levelno, 6)}>{line}" for line in text.split("\n"))

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
        below = "".join(f"\n    {visible_line(part)}" for part in self.trace(record).splitlines())
        return self.with_priority(record, line + below)


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
        return self.with_priority(record, json.dumps(document))


def without_secrets(text: str) -> str:
    """Return a text with tokens, and passwords in addresses, masked."""
    return _PASSWORD.sub(r"\1:***@", TOKEN.sub("evalsvc_***", text))


def _word(value: Any) -> str:
    text = visible_line(without_secrets(str(value)))
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
