"""An evaluation: its progress, its results, its errors with their cure, and how its numbers were made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import meaning
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import OVER
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.page import Content, Page
from evalsvc.web.panels.loss_map import loss_maps
from evalsvc.web.protocol_files import Measured, in_words, measured_in

MAX_ID = 2**31 - 1

FieldRow = tuple[str, str, str]
"""A field of a protocol: its dotted name, its value, and the file that the value is the digest of, or ""."""


@dataclass(frozen=True)
class Act:
    """What a form of the page does."""

    name: str
    label: str
    explanation: str


ACTS = {
    "cancel": Act(
        "cancel", "Cancel", "What waits is not begun, what runs is stopped; finished shards keep their results."
    ),
    "retry": Act("retry", "Retry", "What failed or was cancelled is queued again; finished shards do not run again."),
    "again": Act("again", "Evaluate again", "A new evaluation measures everything again, by the present suite."),
}
"""The forms of the page, by the last part of their addresses."""


@dataclass(frozen=True)
class OwnFields:
    """What one of a task's protocols does not share with the others."""

    protocol: str
    metrics: Sequence[str]
    fields: Sequence[FieldRow]


@dataclass(frozen=True)
class Made:
    """How the numbers of a task were made."""

    shared: Sequence[FieldRow]
    """Fields that all protocols of the task have in common."""
    protocols: Sequence[OwnFields]
    provenance: Sequence[tuple[str, str]]
    """Device, versions and seconds, by name."""


class EvaluationPage(Page):
    """The evaluation of a checkpoint by a suite."""

    template: ClassVar = "evaluation.html"

    evaluation: Annotated[int, Field(ge=1, le=MAX_ID)]

    def content(self, source: ServiceReader) -> Content:
        evaluation = source.evaluation(self.evaluation)
        suite = source.evaluated_suite(self.evaluation)
        name = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
        over = evaluation.state in OVER
        artifacts = source.evaluation_artifacts(self.evaluation)
        checkpoint = source.checkpoint(evaluation.checkpoint)
        values = {
            "evaluation": evaluation,
            "name": name,
            "suite": suite,
            "since": suite_since(suite),
            "tasks_json": json.dumps(suite.tasks, indent=2, ensure_ascii=False),
            "over": over,
            "seconds": _seconds(evaluation.started_at, evaluation.finished_at),
            "acts": [ACTS[act] for act in _possible(evaluation.state)],
            "made": {
                task.name: _made(task, list(measured_in(task, evaluation, suite, checkpoint)))
                for task in evaluation.tasks
                if task.metrics or task.provenance
            },
            "artifacts": [each for each in artifacts if each.pruned_at is None],
            "maps": {query.task: query for query in loss_maps(artifacts)},
            "meaning": meaning,
            "commands": _commands(name, evaluation.suite.name, evaluation.id),
        }
        # A page of what is not over follows the events instead.
        watched = [f"/v1/evaluations/{self.evaluation}"] if over else []
        return Content(f"{name}: {evaluation.suite.name}", values, watched)


def suite_since(suite: documents.EvaluatedSuite) -> str:
    """Return what became of a suite since the evaluation began with it."""
    if suite.current_digest is None:
        return "was deleted since"
    return "is unchanged since" if suite.current_digest == suite.digest else "was replaced since"


def _possible(state: str) -> Sequence[str]:
    if state not in OVER:
        return ["cancel"]
    return ["again"] if state == "succeeded" else ["retry", "again"]


def _made(task: documents.Task, measured: Sequence[Measured]) -> Made:
    rows = {item.protocol: list(item.fields()) for item in measured}
    first = next(iter(rows.values()), [])
    shared = [row for row in first if all(row in own for own in rows.values())]
    protocols = [
        OwnFields(item.protocol, item.metrics, [row for row in rows[item.protocol] if row not in shared])
        for item in measured
    ]
    provenance = [(key, in_words(value)) for key, value in (task.provenance or {}).items() if value is not None]
    return Made(shared, protocols, provenance)


def _seconds(started: str | None, finished: str | None) -> float | None:
    if started is None or finished is None:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def _commands(name: str, suite: str, evaluation: int) -> Sequence[tuple[str, str]]:
    again = f"evalsvc retry {shlex.quote(name)} --suite {shlex.quote(suite)}"
    return [
        ("evaluate again", again),
        ("the suite as it was evaluated", f"evalsvc evaluations {evaluation} --tasks"),
        ("how the values were measured", f"evalsvc protocol {shlex.quote(name)}"),
        ("results per item", f"evalsvc items {evaluation}"),
    ]
