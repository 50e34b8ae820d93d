"""The service: its workers, its queue, and what failed last."""

from __future__ import annotations

from typing import ClassVar

from evalsvc.client import Client
from evalsvc.web.page import Content, Page


class StatusPage(Page):
    """The state of the service."""

    template: ClassVar = "status.html"

    def content(self, client: Client) -> Content:
        """Return the state as `GET /v1/status` has it."""
        return Content("Status", {"status": client.status()}, ["/v1/status"])
