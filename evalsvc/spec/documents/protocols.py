"""Documents of protocols."""

from __future__ import annotations

from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, NextCursor, Open
from evalsvc.spec.documents.history import ProtocolId


class ListedProtocol(Document):
    """A protocol, with the metrics that were measured under it."""

    id: ProtocolId
    content: Annotated[Open, Example({"task": "loss", "version": 1})]
    """Content of the protocol: everything that affects the measured numbers."""
    metrics: Annotated[list[str], Example(["loss/image", "loss/text"])]
    """Names of the first 100 metrics with values under the protocol, sorted."""
    runs: Annotated[Count, Example(2)]
    """Number of runs with values under the protocol."""


class Protocols(Document):
    """A page of the protocols, sorted by id."""

    protocols: list[ListedProtocol]
    next_cursor: NextCursor = None
    """Cursor of the next page; null on the last page."""
