"""The route of the service's metrics for Prometheus: queue, attempts, requests, disks and process."""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter as Sums
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalsvc import __version__
from evalsvc.api.middleware.access import needs
from evalsvc.api.routing import router_of
from evalsvc.api.state import CurrentState, State
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError
from evalsvc.installation import code_digest, find_commit
from evalsvc.store.queue.status import kinds_of, read_depths, read_totals
from evalsvc.store.queue.transitions import SECONDS
from evalsvc.store.tables import AttemptTotal

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods that are counted by name. All other methods count as `other`, to bound the number of series."""

REQUEST_SECONDS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

NO_ROUTE = "none"
"""The route label of refused requests, and of requests that match no route."""

# Otherwise each counter would have a second series with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]

router = router_of(tags=["health"])

F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily)


@dataclass(frozen=True)
class Family:
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "evalsvc_evaluations": Family("gauge", "Evaluations by state.", ("state",)),
    "evalsvc_shards": Family("gauge", "Shards that are queued or running.", ("state",)),
    "evalsvc_queue_oldest_seconds": Family(
        "gauge", "Age of the oldest evaluation that has a queued shard; 0 if no shard is queued."
    ),
    "evalsvc_workers": Family("gauge", "Live worker processes. Not shown by a service that only reads."),
    "evalsvc_coordinator_up": Family(
        "gauge", "1 if the coordinator dispatches shards, else 0. Not shown by a service that only reads."
    ),
    "evalsvc_database_up": Family("gauge", "1 if the database answers, else 0."),
    "evalsvc_attempts": Family("counter", "Attempts of shards that ended.", ("kind", "stage", "outcome")),
    "evalsvc_attempt_seconds": Family("histogram", "Duration of the attempts that succeeded.", ("stage",)),
    "evalsvc_units": Family("counter", "Units of work done: images, sequences or requests.", ("kind",)),
    "evalsvc_units_per_second": Family("gauge", "Units of work per second of the running tasks.", ("kind",)),
    "evalsvc_failures": Family("counter", "Attempts that failed, by error code.", ("code",)),
    "evalsvc_requests": Family("counter", "HTTP requests since the service started.", ("method", "route", "status")),
    "evalsvc_request_seconds": Family(
        "histogram", "Duration of HTTP requests, event streams excluded.", ("method", "route")
    ),
    "evalsvc_event_streams": Family("gauge", "Open event streams."),
    "evalsvc_disk_free_bytes": Family("gauge", "Free bytes of the disk of a folder of the service.", ("folder",)),
    "evalsvc_disk_total_bytes": Family("gauge", "Size in bytes of the disk of a folder of the service.", ("folder",)),
    "evalsvc_build_info": Family(
        "gauge", "Always 1; the labels are the versions in use.", ("version", "code", "commit", "python")
    ),
    # The following metrics are from prometheus_client, which reads /proc and shows them on Linux only.
    "process_virtual_memory_bytes": Family("gauge", "Virtual memory size in bytes."),
    "process_resident_memory_bytes": Family("gauge", "Resident memory size in bytes."),
    "process_start_time_seconds": Family("gauge", "Start time of the process since unix epoch in seconds."),
    "process_cpu_seconds": Family("counter", "Total user and system CPU time spent in seconds."),
    "process_max_fds": Family("gauge", "Maximum number of open file descriptors."),
    "process_open_fds": Family("gauge", "Number of open file descriptors."),
}
"""Every metric of the service by name. In the answer, names of counters have the suffix `_total`."""


class Requests:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        number, seconds = FAMILIES["evalsvc_requests"], FAMILIES["evalsvc_request_seconds"]
        self.number = Counter("evalsvc_requests", number.help, number.labels, registry=self.registry)
        self.seconds = Histogram(
            "evalsvc_request_seconds", seconds.help, seconds.labels, buckets=REQUEST_SECONDS, registry=self.registry
        )


class CountRequests:
    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self.app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, is_stream = time.perf_counter(), 500, False

        async def send_counted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            seconds, method = time.perf_counter() - begun, scope["method"] if scope["method"] in METHODS else "other"
            # The template of the route, since the path itself would make a series for each run.
            route = getattr(scope.get("route"), "path_format", None)
            route = route if isinstance(route, str) else NO_ROUTE
            self._requests.number.labels(method, route, str(status)).inc()
            if not is_stream:
                self._requests.seconds.labels(method, route).observe(seconds)


class _ServiceCollector(Collector):
    """A collector that reads the database at every scrape, so that counts continue after a restart."""

    def __init__(self, state: State, streams: int) -> None:
        self._state = state
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        coordinator = self._state.coordinator
        if not self._state.settings.read_only:  # a read-only service has no coordinator, and 0 could raise an alarm
            yield _gauge("evalsvc_workers", coordinator.workers())
            yield _gauge("evalsvc_coordinator_up", int(coordinator.alive()))
        yield _gauge("evalsvc_event_streams", self._streams)
        yield from _disks(self._state.settings)
        build = _family(GaugeMetricFamily, "evalsvc_build_info")
        build.add_metric([__version__, code_digest(), find_commit(), platform.python_version()], 1)
        yield build
        live = coordinator.live()
        try:
            with self._state.reading() as session:
                depths, totals = read_depths(session), read_totals(session)
                kinds = kinds_of(session, live) if live else {}
        except EvalsvcError:
            # Metrics that do not need the database are still shown.
            yield _gauge("evalsvc_database_up", 0)
            return
        yield _gauge("evalsvc_database_up", 1)
        yield _labelled("evalsvc_evaluations", depths.evaluations.items())
        yield _labelled("evalsvc_shards", depths.shards.items())
        yield _gauge("evalsvc_queue_oldest_seconds", depths.oldest_seconds)
        yield from _totals(totals)
        speeds: Sums[str] = Sums()
        for task, work in live.items():
            if task in kinds:
                speeds[kinds[task]] += work.per_second or 0.0  # type: ignore[assignment]
        yield _labelled("evalsvc_units_per_second", speeds.items())


def _disks(settings: Settings) -> Iterator[Metric]:
    free: dict[str, float] = {}
    total: dict[str, float] = {}
    for name, folder in {"data": settings.data_path, "spool": settings.kept_paths[0]}.items():
        with suppress(OSError):
            usage = shutil.disk_usage(next((path for path in (folder, *folder.parents) if path.exists()), folder))
            free[name], total[name] = usage.free, usage.total
    yield _labelled("evalsvc_disk_free_bytes", free.items())
    yield _labelled("evalsvc_disk_total_bytes", total.items())


def _totals(totals: Iterable[AttemptTotal]) -> Iterator[Metric]:
    attempts: Sums[tuple[str, ...]] = Sums()
    units: Sums[tuple[str, ...]] = Sums()
    failures: Sums[tuple[str, ...]] = Sums()
    buckets: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    for row in totals:
        attempts[row.kind, row.stage, row.outcome] += row.attempts
        if row.code:
            failures[(row.code,)] += row.attempts
        if row.outcome == "succeeded":
            units[(row.kind,)] += row.units
            buckets.setdefault(row.stage, [0] * (len(SECONDS) + 1))[row.bucket] += row.attempts
            seconds[row.stage] = seconds.get(row.stage, 0.0) + row.seconds
    for name, sums in (("evalsvc_attempts", attempts), ("evalsvc_units", units), ("evalsvc_failures", failures)):
        family = _family(CounterMetricFamily, name)
        for values, number in sorted(sums.items()):
            family.add_metric(values, number)
        yield family
    durations, ends = _family(HistogramMetricFamily, "evalsvc_attempt_seconds"), [*map(str, SECONDS), "+Inf"]
    for stage, counts in sorted(buckets.items()):
        durations.add_metric([stage], list(zip(ends, map(float, accumulate(counts)), strict=True)), seconds[stage])
    yield durations


def _family(kind: type[F], name: str) -> F:
    return kind(name, FAMILIES[name].help, labels=FAMILIES[name].labels)


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, FAMILIES[name].help, value=value)


def _labelled(name: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = _family(GaugeMetricFamily, name)
    for key, value in sorted(values):
        family.add_metric([key], value)
    return family


@router.get(
    "/metrics",
    summary="Get the service's metrics for Prometheus",
    description="Counts of attempts and units are read from the database. A restart or the deletion of runs does not "
    "reset these counts.",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "The metrics in the text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "evalsvc_workers 2.0\n"}},
        }
    },
)
@needs("read")
def get_metrics(request: Request, state: CurrentState) -> Response:
    app, registry = request.app, CollectorRegistry()
    registry.register(_ServiceCollector(state, len(app.state.followers)))
    ProcessCollector(registry=registry)
    content = generate_latest(registry) + generate_latest(app.state.requests.registry)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
