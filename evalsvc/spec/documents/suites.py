"""Documents of suites."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Digest, Id, NextCursor, Open, SuiteName, Text
from evalsvc.spec.documents.results import Error

Source = Annotated[Literal["put", "folder", "shipped"], Example("shipped")]
"""Where a suite is from: a request, a file of the suites' folder, or evalsvc."""

Shadowed = Annotated[Literal["folder", "shipped"] | None, Example(None)]

Tasks = Annotated[list[Open], Example([{"kind": "loss", "name": "loss", "data": "datasets:heldout_text.jsonl"}])]
HeadlineMetrics = Annotated[list[str], Example(["loss/image", "loss/text"])]


class Suite(Document):
    """A suite with its tasks and all their parameters."""

    name: SuiteName
    description: Text
    tasks: Tasks
    """Each task with its `kind`, its `name`, and the parameters of its kind."""
    digest: Annotated[Digest, Example("4f0c…")]
    source: Source
    shadows: Shadowed = None
    """Source of another suite of the same name, which this suite hides; null where the name has one suite."""
    headline: HeadlineMetrics = field(default_factory=list)
    """Metrics to show first, the most important one first; empty where the suite names none."""


class SuiteSummary(Document):
    """A suite that can be named."""

    name: SuiteName
    source: Source
    description: Text
    digest: Annotated[Digest, Example("4f0c…")]
    tasks: Annotated[list[str], Example(["loss"])]
    """The tasks' names."""
    shadows: Shadowed = None
    """Source of another suite of the same name, which this suite hides; null where the name has one suite."""
    headline: HeadlineMetrics = field(default_factory=list)
    """Metrics to show first, the most important one first; empty where the suite names none."""


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


class EvaluatedSuite(Document):
    """The suite that an evaluation began with, whatever the suite's name stands for now."""

    evaluation: Id
    name: SuiteName
    tasks: Tasks
    """Each task with its `kind`, its `name`, and the parameters of its kind."""
    digest: Annotated[Digest, Example("4f0c…")]
    current_digest: Annotated[Digest | None, Example("4f0c…")]
    """Digest of the suite that has the name now: another one where the suite was replaced, null where the suite was
    deleted or cannot be read."""


class DeletedSuite(Document):
    """The suite that was deleted."""

    name: Annotated[SuiteName, Example("captions")]
    digest: Annotated[Digest, Example("4f0c…")]
    uncovered: Shadowed
    """Source of the suite that has the name from now on; null where no suite has the name."""
