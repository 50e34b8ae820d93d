"""Documents of suites."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalsvc.spec.documents.document import Document
from evalsvc.spec.documents.fields import Digest, Id, NextCursor, Open, SuiteName, Text
from evalsvc.spec.documents.results import Error

Source = Annotated[Literal["put", "folder", "shipped"], Field(examples=["shipped"])]
"""Origin of a suite: a request, a file in the suites folder, or evalsvc itself."""

Shadowed = Annotated[Literal["folder", "shipped"] | None, Field(examples=[None])]

Tasks = Annotated[
    list[Open], Field(examples=[[{"kind": "loss", "name": "loss", "data": "datasets:heldout_text.jsonl"}]])
]
HeadlineMetrics = Annotated[list[str], Field(examples=[["loss/image", "loss/text"]])]


class Suite(Document):
    """A suite, with its tasks and all their parameters."""

    name: SuiteName
    description: Text
    tasks: Tasks
    """Tasks, each with `kind`, `name` and the parameters of its kind."""
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    source: Source
    headline: HeadlineMetrics = []
    """Headline metrics, most important first; empty if the suite has none."""
    shadows: Shadowed = None
    """Origin of another suite with the same name, which this suite hides; null if there is none."""


class SuiteSummary(Document):
    """A suite that can be evaluated."""

    name: SuiteName
    source: Source
    description: Text
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    tasks: Annotated[list[str], Field(examples=[["loss"]])]
    """Names of the tasks."""
    headline: HeadlineMetrics = []
    """Headline metrics, most important first; empty if the suite has none."""
    shadows: Shadowed = None
    """Origin of another suite with the same name, which this suite hides; null if there is none."""


class BrokenSuite(Document):
    """A suite file that cannot be read, with the error."""

    name: SuiteName
    source: Source
    error: Error


class Suites(Document):
    """A page of the suites, sorted by name."""

    suites: list[SuiteSummary | BrokenSuite]
    next_cursor: NextCursor = None


class EvaluatedSuite(Document):
    """The suite of an evaluation, as it was when the evaluation began."""

    evaluation: Id
    name: SuiteName
    tasks: Tasks
    """Tasks, each with `kind`, `name` and the parameters of its kind."""
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    current_digest: Annotated[Digest | None, Field(examples=["4f0c…"])]
    """Digest of the suite that has the name now, which differs if the suite was replaced; null if it was deleted or
    cannot be read."""


class DeletedSuite(Document):
    """A deleted suite."""

    name: Annotated[SuiteName, Field(examples=["captions"])]
    digest: Annotated[Digest, Field(examples=["4f0c…"])]
    uncovered: Shadowed
    """Origin of the suite that has the name from now on; null if there is none."""
