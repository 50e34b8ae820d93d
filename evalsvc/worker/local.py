"""`evalsvc run`: evaluates a suite shard by shard in this process, without a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.files.outputs import KeptOutput
from evalsvc.messages import MergeResult, PlanResult, ShardRequest, ShardResult, units_of
from evalsvc.spec.documents.results import Error, ResultCheckpoint, ResultFile, ResultSuite, TaskMetric, TaskWarning
from evalsvc.spec.looks import stop_note
from evalsvc.spec.suite import Suite, TaskSpec
from evalsvc.worker.shard import run_shard

PLANNING = "is being planned: the checkpoint is opened and the data are read"


@dataclass(frozen=True)
class TaskLook:
    """The result of a task after some or all of its shards."""

    task: str
    result: ShardResult
    """Result of merging these shards, or of the stage that failed."""
    shards: Sequence[Mapping[str, Any]]
    units: int
    """Units of `total` that the result rests on; 0 if a stage failed."""
    total: int
    unit: str
    last: bool


def run_suite(
    suite: Suite,
    checkpoint: CheckpointRef,
    report: Callable[[str, int, int | None, str], None],
    base: CheckpointRef | None = None,
    interim: Callable[[TaskLook], None] | None = None,
    *,
    settings: Settings | None = None,
) -> ResultFile:
    """Evaluate a checkpoint in this process, without a service, compared with `base` if it is given.

    `report` gets the task's name, the units done, the total units, and the name of the unit; while a task is planned,
    None as the total, and PLANNING. `interim` gets results of a task before its end. A task that fails is an entry of
    `errors`. See `result_document` for the result. If `settings` is None, they are read from the environment.
    """
    settings = settings or Settings.load()
    ends: list[TaskLook] = []
    for task in suite.tasks:
        for look in walk_task(task, checkpoint, settings, report, base, between=interim is not None):
            if look.last:
                ends.append(look)
            elif interim is not None:
                interim(look)
    return result_document(suite, checkpoint, ends)


def result_document(suite: Suite, checkpoint: CheckpointRef, looks: Sequence[TaskLook]) -> ResultFile:
    """Combine looks at tasks, one per task, to the result of a checkpoint. Artifacts hold their `content` as bytes."""
    measured = {look.task: look.result.output for look in looks if isinstance(look.result.output, MergeResult)}
    notes = {task: output.notes for task, output in measured.items()}
    digests = [look.result.provenance.get("checkpoint_sha256") for look in reversed(looks)]
    sha256 = next(filter(None, digests), checkpoint.sha256)
    errors = {look.task: look.result.error for look in looks if look.result.error is not None}
    return ResultFile(
        checkpoint=ResultCheckpoint(path=checkpoint.path, label=checkpoint.label, sha256=sha256),
        suite=ResultSuite(name=suite.name, digest=suite.digest, tasks=suite.tasks_to_json()),
        metrics=[TaskMetric(**metric, task=task) for task, output in measured.items() for metric in output.metrics],
        protocols={key: dict(content) for output in measured.values() for key, content in output.protocols.items()},
        items={task: list(output.items) for task, output in measured.items()},
        artifacts={task: [asdict(artifact) for artifact in output.artifacts] for task, output in measured.items()},
        errors={task: Error(**error.to_json()) for task, error in errors.items()},
        warnings={
            task: [TaskWarning(**warning) for warning in output.warnings]
            for task, output in measured.items()
            if output.warnings
        },
        provenance={
            look.task: {**look.result.provenance, "shards": look.shards, "notes": notes.get(look.task, {})}
            for look in looks
        },
    )


def walk_task(
    task: TaskSpec,
    checkpoint: CheckpointRef,
    settings: Settings,
    report: Callable[[str, int, int | None, str], None],
    base: CheckpointRef | None = None,
    *,
    between: bool,
) -> Iterator[TaskLook]:
    """Evaluate a task and yield its final result; with `between`, also its interim results. A shard runs only when the
    next result is requested, so the caller may stop early."""
    report(task.name, 0, None, PLANNING)
    planned = run_shard(ShardRequest(task, "plan", checkpoint, base=base), lambda done: None, settings)
    plan = planned.output
    if not isinstance(plan, PlanResult):
        yield TaskLook(task.name, planned, [], 0, 0, "", last=True)
        return
    looks, sample, done = dict(plan.looks), max(dict(plan.looks).values(), default=plan.total), 0
    outputs: list[KeptOutput] = []
    provenance: list[Mapping[str, Any]] = []

    def progress(units: int) -> None:
        report(task.name, done + units, plan.total, plan.unit)

    def look(result: ShardResult, units: int, last: bool) -> TaskLook:
        return TaskLook(task.name, result, list(provenance), units, sample, plan.unit, last)

    def merge() -> ShardResult:
        request = ShardRequest(task, "merge", checkpoint, plan.shards[: len(outputs)], list(outputs), base)
        return run_shard(request, lambda done: None, settings)

    progress(0)
    for shard in plan.shards:
        result = run_shard(ShardRequest(task, "run", checkpoint, [shard], base=base), progress, settings)
        if isinstance(result.output, bytes):
            outputs.append(result.output)
            provenance.append(result.provenance)
            done += units_of(shard)
        if result.error is not None:
            yield look(result, 0, last=True)
            return
        units = looks.get(len(outputs))
        if units is None or len(outputs) == len(plan.shards) or not (between or plan.until):
            continue
        merged = merge()
        if not isinstance(merged.output, MergeResult):  # too few items for a result so far
            continue
        if plan.until and (reason := plan.until.reached(merged.output.metrics)):
            stopped = {**merged.output.notes, "stopped": stop_note(reason, units, sample, plan.unit)}
            yield look(replace(merged, output=replace(merged.output, notes=stopped)), units, last=True)
            return
        if between:
            yield look(merged, units, last=False)
    yield look(merge(), sample, last=True)
