"""The service: its workers, its queue, its disk, and what failed last."""

from __future__ import annotations

from typing import ClassVar

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import meaning
from evalsvc.spec import documents
from evalsvc.web.formats import duration
from evalsvc.web.page import Content, Page


class StatusPage(Page):
    """The state of the service."""

    template: ClassVar = "status.html"

    def content(self, source: ServiceReader) -> Content:
        status = source.status()
        values = {
            "status": status,
            "busy": sum(worker.runs is not None for worker in status.workers),
            "runs": sorted(status.queue.runs, key=lambda run: (-run.queued, -run.running, run.run)),
            "time_left": time_left(status.queue),
            "meaning": meaning,
        }
        return Content("Status", values, ["/v1/status"])


def time_left(queue: documents.Queue) -> str:
    """Return how long the queue takes, with what the estimate rests on."""
    if not queue.queued and not queue.running:
        return "the queue is empty"
    if queue.seconds_left is None:
        return "unknown: no evaluation ended in the last hour"
    few = "; few evaluations ended, so this may be far off" if queue.finished_last_hour < 5 else ""
    return f"about {duration(queue.seconds_left)} at the pace of the last hour, idle time left out{few}"
