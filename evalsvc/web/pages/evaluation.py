"""An evaluation: its progress, its results, its errors with their cure, and how its numbers were made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client import Client
from evalsvc.errors import UnknownName, meaning
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import OVER
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.page import Content, Page
from evalsvc.web.panels.loss_map import loss_maps
from evalsvc.web.protocol_files import Measured, known_files

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

    def content(self, client: Client) -> Content:
        """Return the evaluation, its suite and the lines that repeat it.

        Raises:
            UnknownName: there is no such evaluation.
        """
        evaluation = client.evaluation(self.evaluation)
        suite = client.evaluated_suite(self.evaluation)
        name = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
        over = evaluation.state in OVER
        artifacts = client.evaluation_artifacts(self.evaluation)
        values = {
            "evaluation": evaluation,
            "name": name,
            "suite": suite,
            "since": suite_since(suite),
            "tasks_json": json.dumps(suite.tasks, indent=2, ensure_ascii=False),
            "over": over,
            "seconds": _seconds(evaluation.started_at, evaluation.finished_at),
            "acts": [ACTS[act] for act in _possible(evaluation.state)],
            "made": self._made(client, evaluation, suite),
            "artifacts": [each for each in artifacts if each.pruned_at is None],
            "maps": {query.task: query for query in loss_maps(artifacts)},
            "meaning": meaning,
            "commands": _commands(name, evaluation.suite.name, evaluation.id),
        }
        # A page of what is not over follows the events instead.
        watched = [f"/v1/evaluations/{self.evaluation}"] if over else []
        return Content(f"{name}: {evaluation.suite.name}", values, watched)

    def _made(
        self, client: Client, evaluation: documents.Evaluation, suite: documents.EvaluatedSuite
    ) -> Mapping[str, Made]:
        """Return how the numbers of each finished task were made."""
        checkpoint = client.checkpoint(evaluation.checkpoint)
        parameters = {str(task.get("name")): task for task in suite.tasks}
        return {
            task.name: _made(task, known_files(checkpoint, parameters.get(task.name, {})))
            for task in evaluation.tasks
            if task.metrics or task.provenance
        }


def suite_since(suite: documents.EvaluatedSuite) -> str:
    """Return what became of a suite since the evaluation began with it."""
    if suite.current_digest is None:
        return "was deleted since"
    return "is unchanged since" if suite.current_digest == suite.digest else "was replaced since"


def act_on(client: Client, evaluation: int, act: str) -> int:
    """Cancel, retry or repeat an evaluation; return the id of the evaluation to show then.

    Raises:
        UnknownName: there is no such evaluation, or no such act.
        WrongState: the evaluation is over, or is not over yet, or its checkpoint was replaced.
    """
    if act not in ACTS:
        raise UnknownName.among("act", act, ACTS)
    if act == "cancel":
        return client.cancel(evaluation).id
    if act == "retry":
        return client.retry(evaluation).id
    before = client.evaluation(evaluation)
    return client.evaluate(before.checkpoint, before.suite.name, before.priority).id


def _possible(state: str) -> Sequence[str]:
    if state not in OVER:
        return ["cancel"]
    return ["again"] if state == "succeeded" else ["retry", "again"]


def _made(task: documents.Task, files: Mapping[str, str]) -> Made:
    """Return the fields of a task's protocols, first those that all of them share."""
    names: dict[str, list[str]] = {}
    for metric in task.metrics or []:
        names.setdefault(metric.protocol, []).append(metric.name)
    rows = {
        protocol: list(Measured(protocol, task.protocols.get(protocol, {}), metrics, files).fields())
        for protocol, metrics in names.items()
    }
    first = next(iter(rows.values()), [])
    shared = [row for row in first if all(row in own for own in rows.values())]
    protocols = [
        OwnFields(protocol, names[protocol], [row for row in own if row not in shared])
        for protocol, own in rows.items()
    ]
    provenance = [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in (task.provenance or {}).items()
        if value is not None
    ]
    return Made(shared, protocols, provenance)


def _seconds(started: str | None, finished: str | None) -> float | None:
    if started is None or finished is None:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def _commands(name: str, suite: str, evaluation: int) -> Sequence[tuple[str, str]]:
    """Return what the command line does with the evaluation, as (purpose, line)."""
    again = f"evalsvc evaluations again {shlex.quote(name)} --suite {shlex.quote(suite)}"
    return [
        ("evaluate again", again),
        ("the suite as it was evaluated", f"evalsvc evaluations suite {evaluation}"),
        ("how the values were measured", f"evalsvc protocol show {shlex.quote(name)}"),
        ("results per item", f"evalsvc items get {evaluation}"),
    ]
