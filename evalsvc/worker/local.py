"""`evalsvc run`: a suite evaluated shard by shard in this process, without a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.messages import MergeResult, PlanResult, ShardRequest, ShardResult, units_of
from evalsvc.spec.documents.results import Error, ResultCheckpoint, ResultFile, ResultSuite, TaskMetric, TaskWarning
from evalsvc.spec.looks import stop_note
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.worker.shard import run_shard


@dataclass(frozen=True)
class TaskLook:
    """What is known of a task when some of its shards are done, or all."""

    task: str
    result: ShardResult
    """Of the merge of these shards; or of the stage that failed."""
    shards: Sequence[Mapping[str, Any]]
    """Provenance of each of them."""
    units: int
    """What the result rests on, of `total`; 0 where a stage failed."""
    total: int
    unit: str
    last: bool


def run_suite(
    suite: Suite,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None = None,
    interim: Callable[[TaskLook], None] | None = None,
    *,
    settings: Settings | None = None,
) -> ResultFile:
    """Evaluate a checkpoint in this process, without a service. `base` is what it is compared with, if anything.

    `report` gets the task's name, the units done, the units in all, and what they are; `interim` what is known of a
    task before its end. A task that fails is an entry of `errors`. For the result see `result_document`. `settings`
    None: those of the environment.
    """
    settings = settings or Settings.load()
    ends = []
    for task in suite.tasks:
        for look in walk_task(task, checkpoint, settings, report, base, between=interim is not None):
            if look.last:
                ends.append(look)
            elif interim is not None:
                interim(look)
    return result_document(suite, checkpoint, ends)


def result_document(suite: Suite, checkpoint: CheckpointRef, looks: Sequence[TaskLook]) -> ResultFile:
    """Return what these looks, one a task, say of a checkpoint. Artifacts have their `content`, as bytes."""
    measured = {look.task: look.result.output for look in looks if isinstance(look.result.output, MergeResult)}
    errors = {look.task: look.result.error for look in looks if look.result.error is not None}
    return ResultFile(
        checkpoint=ResultCheckpoint(path=checkpoint.path, label=checkpoint.label, sha256=_sha256(checkpoint, looks)),
        suite=ResultSuite(name=suite.name, digest=suite.digest, tasks=suite.tasks_to_json()),
        metrics=[TaskMetric(**metric, task=task) for task, found in measured.items() for metric in found.metrics],
        protocols={key: dict(content) for found in measured.values() for key, content in found.protocols.items()},
        items={task: list(found.items) for task, found in measured.items()},
        artifacts={task: [asdict(artifact) for artifact in found.artifacts] for task, found in measured.items()},
        errors={task: Error(**error.to_json()) for task, error in errors.items()},
        warnings={
            task: [TaskWarning(**warning) for warning in found.warnings]
            for task, found in measured.items()
            if found.warnings
        },
        provenance={look.task: _provenance(look) for look in looks},
    )


def _provenance(look: TaskLook) -> dict[str, object]:
    notes = look.result.output.notes if isinstance(look.result.output, MergeResult) else {}
    return {**look.result.provenance, "shards": look.shards, "notes": notes}


def _sha256(checkpoint: CheckpointRef, looks: Sequence[TaskLook]) -> str | None:
    """Return the digest of the weights that were loaded last, else the one that was given."""
    found = [look.result.provenance.get("checkpoint_sha256") for look in looks]
    return next((sha256 for sha256 in reversed(found) if sha256), checkpoint.sha256)


def walk_task(
    task: TaskSpec,
    checkpoint: CheckpointRef,
    settings: Settings,
    report: Callable[[str, int, int, str], None],
    base: CheckpointRef | None = None,
    *,
    between: bool,
) -> Iterator[TaskLook]:
    """Evaluate one task shard by shard, and give what is known at its end; before it, too, where `between` is set.

    Whoever needs no more may stop asking: a shard runs only when what follows it is asked for.
    """
    plan = run_shard(ShardRequest(task, "plan", checkpoint, base=base), lambda done: None, settings)
    if not isinstance(plan.output, PlanResult):
        yield TaskLook(task.name, plan, [], 0, 0, "", last=True)
        return
    payloads, total, unit, until = plan.output.shards, plan.output.total, plan.output.unit, plan.output.until
    looks = dict(plan.output.looks)
    sample = max(looks.values(), default=total)
    outputs: list[bytes] = []
    provenance: list[Mapping[str, Any]] = []
    before = 0

    def look(result: ShardResult, units: int, last: bool) -> TaskLook:
        return TaskLook(task.name, result, list(provenance), units, sample, unit, last)

    def merge() -> ShardResult:
        request = ShardRequest(task, "merge", checkpoint, payloads[: len(outputs)], list(outputs), base)
        return run_shard(request, lambda done: None, settings)

    for payload in payloads:

        def progress(done: int, before: int = before) -> None:
            report(task.name, before + done, total, unit)

        result = run_shard(ShardRequest(task, "run", checkpoint, [payload], base=base), progress, settings)
        if not isinstance(result.output, bytes):
            yield look(result, 0, last=True)
            return
        outputs.append(result.output)
        provenance.append(result.provenance)
        before += units_of(payload)
        units = looks.get(len(outputs))
        if units is None or len(outputs) == len(payloads) or not (between or until):
            continue
        merged = merge()
        if not isinstance(merged.output, MergeResult):  # too little for a result so far
            continue
        if until and (reason := until.reached(merged.output.metrics)):
            stopped = {**merged.output.notes, "stopped": stop_note(reason, units, sample, unit)}
            yield look(replace(merged, output=replace(merged.output, notes=stopped)), units, last=True)
            return
        if between:
            yield look(merged, units, last=False)
    yield look(merge(), sample, last=True)
