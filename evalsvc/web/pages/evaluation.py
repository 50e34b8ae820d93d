"""An evaluation: its progress, its results, its errors with their cure, and how its numbers were made, by protocol."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.metrics.definitions import main_metric, title_of
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import OVER
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.page import Content, Crumb, Page, run_trail
from evalsvc.web.panels.loss_map import EvaluationId, loss_maps
from evalsvc.web.protocol_files import Measured, grouped, in_words, known_files, measured_in, newest_measured

ACTS = {
    "cancel": ("Cancel", "Waiting shards do not start, running ones are stopped, finished ones keep their results."),
    "retry": ("Retry", "What failed or was cancelled is queued again; finished shards do not run again."),
    "again": ("Evaluate again", "A new evaluation measures everything again, by the present suite."),
}
"""Labels and explanations of the page's forms, by the last part of their addresses."""


class EvaluationPage(Page):
    template: ClassVar = "evaluation.html"

    evaluation: EvaluationId

    def content(self, source: ServiceReader) -> Content:
        evaluation = source.evaluation(self.evaluation)
        suite = source.evaluated_suite(self.evaluation)
        since = "is unchanged" if suite.current_digest == suite.digest else "was replaced"
        since = "was deleted" if suite.current_digest is None else since
        name = checkpoint_name(evaluation.run, evaluation.step, evaluation.variant)
        over = evaluation.state in OVER
        possible = ["cancel"] if not over else ["again"] if evaluation.state == "succeeded" else ["retry", "again"]
        times = [datetime.fromisoformat(time) for time in (evaluation.started_at, evaluation.finished_at) if time]
        artifacts = source.evaluation_artifacts(self.evaluation)
        checkpoint = source.checkpoint(evaluation.checkpoint)
        names = {metric.name for task in evaluation.tasks for metric in task.metrics or ()}
        values = {
            "evaluation": evaluation,
            "name": name,
            "suite": suite,
            "since": f"{since} since",
            "tasks_json": json.dumps(suite.tasks, indent=2, ensure_ascii=False),
            "over": over,
            "seconds": (times[1] - times[0]).total_seconds() if len(times) == 2 else None,
            "acts": [(act, *ACTS[act]) for act in possible],
            "made": {
                task.name: _made(task, list(measured_in(task, evaluation, suite, checkpoint)))
                for task in evaluation.tasks
                if task.metrics or task.provenance
            },
            "artifacts": [each for each in artifacts if each.pruned_at is None],
            "companions": [name for name in names if main_metric(name, names) is not None],
            "maps": {query.task: query for query in loss_maps(artifacts)},
            "commands": [
                ("evaluate again", f"evalsvc retry {shlex.quote(name)} --suite {shlex.quote(evaluation.suite.name)}"),
                ("the suite as it was evaluated", f"evalsvc evaluations {evaluation.id} --tasks"),
                ("how the values were measured", f"evalsvc protocol {shlex.quote(name)}"),
                ("results per item", f"evalsvc items {evaluation.id}"),
            ],
        }
        # A page of what is not over follows the events instead.
        watched = [f"/v1/evaluations/{self.evaluation}"] if over else []
        trail = run_trail(evaluation.run, "", f"step {evaluation.step:,}", evaluation.suite.name)
        return Content(f"{name}: {evaluation.suite.name}", values, watched, trail)


def _made(task: documents.Task, measured: Sequence[Measured]) -> Mapping[str, object]:
    """Return how the numbers were made: the fields that all protocols of the task share, and those of each."""
    rows = {item.protocol: list(item.fields()) for item in measured}
    first = next(iter(rows.values()), [])
    shared = [row for row in first if all(row in own for own in rows.values())]
    own = {protocol: [row for row in fields if row not in shared] for protocol, fields in rows.items()}
    provenance = [(key, in_words(value)) for key, value in (task.provenance or {}).items() if value is not None]
    return {"shared": shared, "protocols": [(item, own[item.protocol]) for item in measured], "provenance": provenance}


Text = Annotated[str, Field(max_length=300)]

TRIED = 5
"""Most runs whose newest value a protocol's page looks for."""


class ProtocolPage(Page):
    template: ClassVar = "protocol.html"

    protocol: Annotated[str, Field(max_length=64)]
    run: Text = ""
    """Run whose newest value is reproduced; by default, the first run with a value."""
    metric: Text = ""
    """Metric that the page is about; by default, the first one that has a title."""
    only: Annotated[tuple[Text, ...], Field(max_length=50)] = ()
    """Runs that the page may name; by default, all."""

    def content(self, source: ServiceReader) -> Content:
        content = source.protocol(self.protocol)
        use = next(iter(source.protocols(only=self.protocol)))
        runs = [run for run in use.used_by if not self.only or run in self.only]
        metric = self.metric if self.metric in use.metrics else next(filter(title_of, use.metrics), "")
        metric = metric or next(iter(use.metrics), "")
        tried = [self.run] if self.run in runs else runs[:TRIED]
        measured = next(newest_measured(source, self.protocol, metric, tried), None)
        task = None if measured is None else measured.task
        values = {"use": use, "runs": runs, "metric": metric, "words": title_of(metric), "task": task}
        values |= {"json": json.dumps(content, indent=2)}
        values |= {"groups": grouped(measured or Measured(self.protocol, content, (), known_files()))}
        if task is not None:
            name = checkpoint_name(task.checkpoint.run, task.checkpoint.step, task.checkpoint.variant)
            line = f"{shlex.quote(name)} --suite {shlex.quote(task.evaluation.suite.name)}"
            values |= {"name": name, "line": line}
        title = f"How {metric} was measured" if metric else f"Protocol {self.protocol}"
        trail = run_trail(tried[0], "", title) if len(tried) == 1 else [Crumb("Runs", "/"), Crumb(title)]
        return Content(title, values, trail=trail)
