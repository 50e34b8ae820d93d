"""Documents of suites."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Digest, NextCursor, Open, SuiteName, Text
from evalsvc.spec.documents.results import Error

Source = Annotated[Literal["put", "folder", "shipped"], Example("shipped")]
"""Where a suite is from: a request, a file of the suites' folder, or evalsvc."""


class Suite(Document):
    """A suite with its tasks and all their parameters."""

    name: SuiteName
    description: Text
    tasks: Annotated[list[Open], Example([{"kind": "loss", "name": "loss", "data": "datasets:heldout_text.jsonl"}])]
    """Each task with its `kind`, its `name`, and the parameters of its kind."""
    digest: Annotated[Digest, Example("4f0c…")]
    source: Source


class SuiteSummary(Document):
    """A suite that can be named."""

    name: SuiteName
    source: Source
    description: Text
    digest: Annotated[Digest, Example("4f0c…")]
    tasks: Annotated[list[str], Example(["loss"])]
    """The tasks' names."""


class BrokenSuite(Document):
    """A suite that cannot be read."""

    name: SuiteName
    source: Source
    error: Error


class Suites(Document):
    """A page of the suites that can be named, by name."""

    suites: list[SuiteSummary | BrokenSuite]
    next_cursor: NextCursor = None
    """The cursor of the next page; null on the last page."""
