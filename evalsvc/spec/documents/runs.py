"""Documents of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.fields import Count, RunName, Step, Time


@dataclass(frozen=True, kw_only=True)
class RunSummary(Document):
    """A run, and how much there is of it."""

    name: RunName
    checkpoints: Count
    """Checkpoints that were not replaced."""
    last_step: Step | None
    """The highest step of a checkpoint."""
    values: Annotated[Count, Example(180)]
    """Values of metrics in the history."""
    created_at: Time


@dataclass(frozen=True, kw_only=True)
class Runs(Document):
    """Every run, by name."""

    runs: list[RunSummary]
