"""A protocol: everything that moves a number measured under it."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.web.page import Content, Page
from evalsvc.web.protocol_files import Measured, known_files


class ProtocolPage(Page):
    """The fields of a protocol."""

    template: ClassVar = "protocol.html"

    protocol: Annotated[str, Field(max_length=64)]

    def content(self, source: ServiceReader) -> Content:
        content = source.protocol(self.protocol)
        fields = list(Measured(self.protocol, content, (), known_files()).fields())
        values = {"protocol": self.protocol, "fields": fields, "json": json.dumps(content, indent=2)}
        return Content(f"Protocol {self.protocol}", values)
