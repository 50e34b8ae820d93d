"""The recorded numbers of a checkpoint with their protocols, and the functions that compute them a second time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import fetched, locate_checkpoint
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidRequest, UnknownName
from evalsvc.spec.documents import CheckpointResult, StoredCheckpoint
from evalsvc.spec.names import parse_checkpoint
from evalsvc.spec.suite import Suite, TaskSpec, parse_suite
from evalsvc.verify.agreement import Finding, Untried
from evalsvc.worker.context import ShardContext

DECODER = "evalsvc.verify.decoding:verify_decoder_of"

VERIFIERS: Mapping[str, Sequence[str]] = {
    "forgetting": ("evalsvc.verify.text:verify_benchmark_task",),
    "language": ("evalsvc.verify.text:verify_benchmark_task",),
    "loss": ("evalsvc.verify.text:verify_loss_task",),
    "reconstruction": ("evalsvc.verify.images:verify_reconstructions", DECODER),
    "text_to_image": ("evalsvc.verify.images:verify_samples", DECODER),
}
"""Kinds of tasks, with the functions that compute their numbers a second time, as `module:function`.

A function gets a RecordedTask and a VerifyRequest, and returns a list of findings."""


@dataclass(frozen=True)
class RecordedMetric:
    """A value in a service's history."""

    name: str
    value: float
    n: int
    """Number of items behind the value."""
    protocol: Mapping[str, Any]
    """Protocol of the value."""


@dataclass(frozen=True)
class RecordedTask:
    """A task of a suite, with its recorded results. They are empty if no service has evaluated the task."""

    checkpoint: CheckpointRef
    spec: TaskSpec
    metrics: Sequence[RecordedMetric] = ()
    items: Sequence[Mapping[str, Any]] = ()
    """Results per item, as the task returned them."""
    provenance: Mapping[str, Any] | None = None
    """Device, versions and shards of the evaluation."""

    def asked(self, metrics: Sequence[str]) -> list[str]:
        """Return the `metrics`, such as `coco/fid`, that belong to this task."""
        recorded = {metric.name for metric in self.metrics}
        first = {self.spec.name, *self._benchmarks()}
        return [name for name in metrics if name in recorded or name.partition("/")[0] in first]

    def _benchmarks(self) -> list[str]:
        benchmarks = self.spec.parameters.get("benchmarks")
        names = [
            entry.get("name") if isinstance(entry, Mapping) else entry
            for entry in (benchmarks if isinstance(benchmarks, (list, tuple)) else ())
        ]
        return [name for name in names if isinstance(name, str)]


@dataclass(frozen=True)
class VerifyRequest:
    """A request to compute metrics a second time."""

    settings: Settings
    metrics: tuple[str, ...] = ()
    """Names such as `coco/fid`; empty for all that another program computes."""
    n: int = 256
    """Maximum number of images or documents."""
    output: Path | None = None
    """New folder for the compared files; None removes them."""
    report: Callable[[str, int], None] = lambda task, done: None
    """Callback with a task's name and the number of finished images or documents."""


def read_recorded(client: Client, name: str, settings: Settings, suite: str | None = None) -> list[RecordedTask]:
    """Read the newest evaluations of RUN@STEP[:VARIANT], of all suites or of one, and locate the weights on this
    machine.

    Raises:
        UnknownName: the service has no such checkpoint, or no evaluation of it.
        ServiceUnreachable: the service's answer is of another version.
        InvalidRequest: the checkpoint is virtual, so its weights are in several files.
        CheckpointError: the weights are not on this machine, or not allowed.
    """
    run, step, variant = parse_checkpoint(name)
    overview = client.results(run, step, variant=variant, suite=suite)
    tasks: list[RecordedTask] = []
    for evaluation in overview.evaluations:
        result = client.results(run, step, variant=variant, suite=evaluation.suite)
        checkpoint = _locate(client, name, result.checkpoint, settings)
        tasks += _tasks_of(result, parse_suite({"tasks": result.suite.tasks}, "recorded"), checkpoint)
    return tasks


def unrecorded(suite: Suite, checkpoint: CheckpointRef) -> list[RecordedTask]:
    """Return the tasks of a suite for weights that no service has evaluated."""
    return [RecordedTask(checkpoint, spec) for spec in suite.tasks]


def verify_tasks(tasks: Sequence[RecordedTask], request: VerifyRequest) -> list[Finding]:
    """Compute the requested metrics a second time. A metric that cannot be computed here is a finding with the reason.

    Raises:
        UnknownName: no task has a requested metric.
    """
    known = [metric.name for task in tasks for metric in task.metrics] or [f"{task.spec.name}/…" for task in tasks]
    for name in request.metrics:
        if not any(task.asked([name]) for task in tasks):
            raise UnknownName.among("metric", name, known)
    return [
        finding
        for task in tasks
        if not request.metrics or task.asked(request.metrics)
        for finding in _verify(task, request)
    ]


@contextmanager
def opened_context(task: RecordedTask, request: VerifyRequest) -> Iterator[ShardContext]:
    """Open the checkpoint like a worker, with the settings of the request."""

    def report(done: int) -> None:
        request.report(task.spec.name, done)

    with fetched([task.checkpoint], request.settings, report) as [checkpoint]:
        yield ShardContext(checkpoint, request.settings, report)


def _verify(task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    if (targets := VERIFIERS.get(task.spec.kind)) is None:
        reason = f"no other program that computes a task of kind {task.spec.kind} is known here"
        return [Untried(task.spec.name, "", reason)]
    return [finding for target in targets for finding in _findings(target, task, request)]


def _findings(target: str, task: RecordedTask, request: VerifyRequest) -> list[Finding]:
    module, _, function = target.partition(":")
    try:
        findings: list[Finding] = getattr(importlib.import_module(module), function)(task, request)
    except EvalsvcError as error:
        return [Untried(task.spec.name, "", error.message)]
    return findings


def _tasks_of(result: CheckpointResult, suite: Suite, checkpoint: CheckpointRef) -> Iterator[RecordedTask]:
    for spec in suite.tasks:
        metrics = [
            RecordedMetric(metric.name, float(metric.value), metric.n, result.protocols.get(metric.protocol, {}))
            for metric in result.metrics
            if metric.task == spec.name
        ]
        items, provenance = result.items.get(spec.name, []), result.provenance.get(spec.name)
        yield RecordedTask(checkpoint, spec, metrics, items, provenance)


def _locate(client: Client, name: str, checkpoint: StoredCheckpoint, settings: Settings) -> CheckpointRef:
    posted = client.checkpoint(checkpoint.id)
    if posted.parents:
        raise InvalidRequest(
            f"{name} is computed from other checkpoints ({posted.uri}); write an expression with their files, and "
            "run evalsvc verify --checkpoint EXPRESSION --suite SUITE"
        )
    path, identity = locate_checkpoint(posted.uri, settings)
    known = identity if identity.etag is not None else None
    return CheckpointRef(path, known, checkpoint.sha256, posted.model, posted.layout, label=name)
