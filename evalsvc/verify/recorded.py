"""The recorded results of a checkpoint, for a comparison with results that are computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.client import Client
from evalsvc.client.reader import locate
from evalsvc.config import Settings
from evalsvc.errors import InvalidRequest
from evalsvc.spec.suite import TaskSpec, parse_suite


@dataclass(frozen=True)
class RecordedTask:
    """A task of a suite, with its recorded results. They are empty if no service has evaluated the task."""

    checkpoint: CheckpointRef
    spec: TaskSpec
    items: Sequence[Mapping[str, Any]] = ()
    protocols: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def read_recorded(client: Client, name: str, settings: Settings, suite: str | None = None) -> list[RecordedTask]:
    """Read the newest evaluations of RUN@STEP[:VARIANT], of all suites or of one, and locate its weights here."""
    run, step, variant = locate(client, name)
    overview = client.results(run, step, variant=variant, suite=suite)
    tasks: list[RecordedTask] = []
    for evaluation in overview.evaluations:
        result = client.results(run, step, variant=variant, suite=evaluation.suite)
        posted = client.checkpoint(result.checkpoint.id)
        if posted.parents:
            raise InvalidRequest(
                f"{name} is computed from other checkpoints ({posted.uri}); write an expression with their files, and "
                "run evalsvc verify --checkpoint EXPRESSION --suite SUITE"
            )
        path, identity = locate_checkpoint(posted.uri, settings)
        known = identity if identity.etag is not None else None
        checkpoint = CheckpointRef(path, known, result.checkpoint.sha256, posted.model, posted.layout, label=name)
        for spec in parse_suite({"tasks": result.suite.tasks}, "recorded").tasks:
            used = dict.fromkeys(metric.protocol for metric in result.metrics if metric.task == spec.name)
            protocols = [result.protocols[protocol] for protocol in used if protocol in result.protocols]
            items, provenance = result.items.get(spec.name, []), result.provenance.get(spec.name) or {}
            tasks.append(RecordedTask(checkpoint, spec, items, protocols, provenance))
    return tasks
