"""Documents of protocols."""

from __future__ import annotations

from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, NextCursor, Open
from evalsvc.spec.documents.history import ProtocolId


class ListedProtocol(Document):
    """A protocol, and what was measured by the protocol."""

    id: ProtocolId
    content: Annotated[Open, Example({"task": "loss", "version": 1})]
    """Everything that moves a number measured by the protocol."""
    metrics: Annotated[list[str], Example(["loss/image", "loss/text"])]
    """The first 100 metrics that have values by the protocol, by name."""
    runs: Annotated[Count, Example(2)]
    """Number of runs that have values by the protocol."""


class Protocols(Document):
    """A page of the protocols, by id."""

    protocols: list[ListedProtocol]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""
