"""Documents of the events of an evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from evalsvc.spec.documents.document import Document, Example
from evalsvc.spec.documents.evaluations import Progress
from evalsvc.spec.documents.fields import Count, Id, Open, State, TaskName, Time
from evalsvc.spec.documents.results import Error, Metric, TaskWarning

EventKind = Literal["state", "task", "interim", "progress", "end"]


class EventData(Document):
    """The content of an event. Fields that do not apply to an event are absent from its JSON."""

    evaluation: Id
    at: Time | None = None
    """Time of the event."""
    task: TaskName | None = None
    """Name of the task; absent from events of the evaluation as a whole."""
    state: State | None = None
    """New state of the evaluation or task."""
    error: Error | None = None
    """Reason why the evaluation or task failed."""
    warnings: list[TaskWarning] | None = None
    """Suspicions about the result of the task."""
    done: Count | None = None
    """Units of work that an interim result rests on."""
    metrics: list[Metric] | None = None
    """Metrics of an interim result."""
    protocols: Annotated[dict[str, Open] | None, Example({"9a3f0c1d2e4b5a69": {"task": "loss"}})] = None
    """Contents of the metrics' protocols, by id."""
    tasks: Annotated[dict[str, Progress] | None, Example(None)] = None
    """Progress of the running tasks, by name."""


class Event(Document):
    """An event of a stream."""

    id: Id | None = None
    """Id to resume the stream from, as `Last-Event-ID`; progress events have no id."""
    event: EventKind
    data: EventData
