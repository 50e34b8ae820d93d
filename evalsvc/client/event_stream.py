"""The events of an evaluation, as server-sent events that survive a lost connection."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator

import httpx

from evalsvc.client.transport import Transport, query_of
from evalsvc.errors import DatabaseUnusable, RateLimited, ServiceUnreachable
from evalsvc.spec import documents

SILENCE = 60.0
"""Seconds without a byte after which a stream is given up and requested again; the service writes a comment every 15
seconds."""

RECONNECT_DELAY = 2.0
"""Seconds until a stream that ended early is requested again."""


class _Complete(Exception):
    """The service has no more events."""


def follow_events(transport: Transport, evaluation: int, after: int, patience: float) -> Iterator[documents.Event]:
    """Yield the events of an evaluation after the event with the id `after`; see `Client.events`."""
    last_heard = time.monotonic()
    while True:
        try:
            for event in _one_stream(transport, evaluation, after):
                last_heard = time.monotonic()
                after = event.id or after
                yield event
                if event.event == "end":
                    return
        except (ServiceUnreachable, DatabaseUnusable, RateLimited):
            if time.monotonic() - last_heard > patience:
                raise
        except _Complete:
            return
        time.sleep(min(RECONNECT_DELAY, patience))


def _one_stream(transport: Transport, evaluation: int, after: int) -> Iterator[documents.Event]:
    path = f"/v1/evaluations/{evaluation}/events"
    with transport.stream(path, query_of(last_event_id=after or None), SILENCE) as response:
        if response.status_code == httpx.codes.NO_CONTENT:
            raise _Complete
        if not response.is_success:
            response.read()
            transport.read(response)
        for event in _parse_events(response.iter_lines()):
            yield transport.parse(documents.Event, event, "GET", path)


def _parse_events(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield {"id": number, "event": fields["event"], "data": json.loads(fields["data"])}
        fields = {}
