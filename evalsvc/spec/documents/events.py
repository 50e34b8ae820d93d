"""Documents of what happens to an evaluation, for clients that follow it."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.evaluations import Progress
from evalsvc.spec.documents.fields import Count, Id, Open, State, TaskName, Time
from evalsvc.spec.documents.results import Error, Metric, TaskWarning

EventKind = Literal["state", "task", "interim", "progress", "end"]


class EventData(Document):
    """The content of an event. A field that an event has nothing for is left out of its JSON."""

    evaluation: Id
    at: Time | None = None
    """When it happened."""
    task: TaskName | None = None
    """Left out of events of the evaluation itself."""
    state: State | None = None
    """The state that the evaluation or the task came to."""
    error: Error | None = None
    """Why the evaluation or the task failed."""
    warnings: list[TaskWarning] | None = None
    """What is suspicious about the result of a task."""
    done: Count | None = None
    """Units of work that an interim result rests on."""
    metrics: list[Metric] | None = None
    """Of an interim result."""
    protocols: Annotated[dict[str, Open] | None, Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})] = None
    """The contents of the metrics' protocols, by id."""
    tasks: Annotated[dict[str, Progress] | None, Example(None)] = None
    """How far the running tasks are, by name."""


class Event(Document):
    """An event of a stream."""

    id: Id | None = None
    """What a client comes back with after a stream has ended; an event of progress has none."""
    event: EventKind
    data: EventData
