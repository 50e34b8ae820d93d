"""How a number was made: its suite, the digests with the files that they belong to, versions and device."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import yaml
from pydantic import Field

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import UnknownName
from evalsvc.spec.names import MAX_STEP, checkpoint_name
from evalsvc.web.formats import error, number
from evalsvc.web.panel import Cell, Commands, MetricName, Panel, PanelQuery, Table
from evalsvc.web.protocol_files import Measured, MeasuredTask, in_words, leaves, measured_by


class OriginQuery(PanelQuery):
    name: ClassVar = "origin"

    run: Annotated[str, Field(min_length=1, max_length=128)]
    metric: MetricName
    variant: Annotated[str, Field(max_length=128)] = "raw"
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Training step; by default, the step of the newest value."""
    protocol: Annotated[str, Field(max_length=64)] | None = None

    def panel(self, source: ServiceReader) -> Panel:
        step = self.step
        if step is None:
            series = source.summary(self.run, [self.metric], variant=self.variant)
            steps = [each.latest.step for each in series if each.latest and self.protocol in (None, each.protocol)]
            if not steps:
                raise UnknownName(f"{self.run} has no value of {self.metric} by the protocol {self.protocol}")
            step = max(steps)
        name = checkpoint_name(self.run, step, self.variant)
        for measured in measured_by(source, name, self.metric):
            if measured.task is not None and self.protocol in (None, measured.protocol):
                return self._panel(name, measured, measured.task)
        raise UnknownName(
            f"no evaluation of {name} measured {self.metric} by the protocol {self.protocol}; the value was imported, "
            "or measured by an evaluation that a newer one has replaced"
        )

    def _panel(self, name: str, measured: Measured, task: MeasuredTask) -> Panel:
        suite = shlex.quote(task.evaluation.suite.name)
        lines = yaml.safe_dump({"tasks": [dict(task.parameters)]}, sort_keys=False, allow_unicode=True)
        return Panel(
            query=self,
            title=f"How {self.metric} of {name} was made",
            spec=None,
            table=Table(["field", "value", "file or name"], list(self._rows(measured, task))),
            commands=Commands(
                cli=f"evalsvc protocol {shlex.quote(name)} --metric {shlex.quote(self.metric)}",
                rest=f"/v1/evaluations/{task.evaluation.id}",
                more={
                    "make the number again": f"evalsvc retry {shlex.quote(name)} --suite {suite}",
                    "lines of the suite": lines,
                },
            ),
            notes=[
                "numbers are comparable if every field of the protocol is the same; the fields of the provenance "
                "move no number beyond its tolerance"
            ],
            protocols=[measured.protocol],
        )

    def _rows(self, measured: Measured, task: MeasuredTask) -> Iterator[Sequence[Cell]]:
        evaluation = task.evaluation
        for metric in task.result.metrics or []:
            if metric.name == self.metric and self.protocol in (None, metric.protocol):
                value = f"{number(metric.value, metric.stderr)} {error(metric.stderr)} {metric.unit} (n {metric.n:,})"
                yield [self.metric, value, ""]
        yield ["checkpoint", task.checkpoint.sha256 or "not hashed", task.checkpoint.uri]
        yield ["suite", evaluation.suite.digest, evaluation.suite.name]
        yield ["task", task.result.kind, task.result.name]
        yield ["evaluation", evaluation.id, evaluation.finished_at or evaluation.state]
        yield from ([f"protocol.{field}", value, file] for field, value, file in measured.fields())
        provenance = leaves(task.result.provenance or {})
        yield from ([".".join(("provenance", *path)), in_words(value), ""] for path, value in provenance)
