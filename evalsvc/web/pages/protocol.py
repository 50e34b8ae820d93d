"""A protocol: everything that moves a number measured under it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.web.page import Content, Page


class ProtocolPage(Page):
    """The fields of a protocol."""

    template: ClassVar = "protocol.html"

    protocol: Annotated[str, Field(max_length=64)]

    def content(self, client: Client) -> Content:
        """Return the fields of the protocol by their dotted names.

        Raises:
            UnknownName: there is no such protocol.
        """
        content = client.protocol(self.protocol)
        values = {"protocol": self.protocol, "fields": list(_leaves(content)), "json": json.dumps(content, indent=2)}
        return Content(f"Protocol {self.protocol}", values)


def _leaves(content: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
