"""Whole results: the result of a checkpoint, and results per item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from evalsvc.errors import UnknownName
from evalsvc.files.items import ItemTable, read_items
from evalsvc.spec import documents
from evalsvc.spec.documents.fields import State
from evalsvc.spec.documents.results import Change, Completion, Completions, StepCompletions
from evalsvc.store.lookup import checkpoint_label, find_run, find_step, place_of
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Run, Task
from evalsvc.store.views import artifact_view, document_of, protocols_view

WORST_FIRST: tuple[State, ...] = ("running", "queued", "failed", "partly_failed", "cancelled", "succeeded")
"""States of evaluations, in order of precedence for the joint state of several evaluations."""

Values = tuple[documents.CheckpointResult, Mapping[str, Callable[[], ItemTable]]]
"""A result without results per item and artifacts, and functions that read the results per item, by task."""

STEPS_AT_ONCE = 100
"""The number of checkpoints whose evaluations one query reads."""


def read_results(
    session: Session, folder: Path, run: str, step: int, variant: str, suite: str | None = None
) -> documents.CheckpointResult:
    """Return the result of a checkpoint from the newest evaluation of each suite. Where two suites have a task of the
    same name, the task is named `<suite>/<task>`. `folder` has the files of results per item."""
    checkpoint = find_step(session, find_run(session, run), step, variant)
    document, tables = _values(session, folder, checkpoint, suite, {})
    items = {name: list(read().rows()) for name, read in tables.items()}
    names = {task.id: name for name, task in _tasks_by_name(_newest_by_suite(checkpoint, suite)).items()}
    artifacts: dict[str, list[documents.Artifact]] = {name: [] for name in tables}
    for artifact in session.scalars(select(Artifact).where(Artifact.task_id.in_(names)).order_by(Artifact.id)):
        artifacts.setdefault(names[artifact.task_id], []).append(artifact_view(artifact))
    return document.model_copy(update={"items": items, "artifacts": artifacts})


def read_values(session: Session, folder: Path, run: str, step: int, variant: str, suite: str | None = None) -> Values:
    """Return the result of a checkpoint without artifacts, and functions that read its results per item."""
    checkpoint = find_step(session, find_run(session, run), step, variant)
    return _values(session, folder, checkpoint, suite, {})


def read_values_along(
    session: Session, folder: Path, run: str, steps: Sequence[int], variant: str, suite: str | None = None
) -> Iterator[tuple[int, Values]]:
    """Yield a step and the result of `read_values` for each of `steps` that has been evaluated; one query reads
    STEPS_AT_ONCE checkpoints."""
    run_row = find_run(session, run)  # kept for the loop, so that `checkpoint.run` needs no query
    protocols: dict[str, dict[str, object]] = {}
    for start in range(0, len(steps), STEPS_AT_ONCE):
        piece = steps[start : start + STEPS_AT_ONCE]
        current = (Checkpoint.run_id == run_row.id, Checkpoint.variant == variant, Checkpoint.replaced_at.is_(None))
        loaded = selectinload(Checkpoint.evaluations).selectinload(Evaluation.tasks)
        rows = session.scalars(select(Checkpoint).where(*current, Checkpoint.step.in_(piece)).options(loaded))
        checkpoints = {checkpoint.step: checkpoint for checkpoint in rows if checkpoint.evaluations}
        for step in piece:
            if step in checkpoints:
                yield step, _values(session, folder, checkpoints[step], suite, protocols)


def _values(
    session: Session, folder: Path, checkpoint: Checkpoint, suite: str | None, protocols: dict[str, dict[str, object]]
) -> Values:
    """`protocols` caches the contents of protocols by id: contents that are missing are read and added."""
    evaluations = _newest_by_suite(checkpoint, suite)
    tasks = _tasks_by_name(evaluations)
    newest = {}  # of two tasks that measured a metric by one protocol
    for name, task in tasks.items():
        for metric in task.metrics or []:
            newest[metric["name"], metric["protocol"]] = documents.TaskMetric.model_validate({**metric, "task": name})
    used = {metric.protocol for metric in newest.values()}
    if not used <= protocols.keys():
        protocols |= protocols_view(session, used)
    states = {evaluation.state for evaluation in evaluations}
    document = documents.CheckpointResult(
        checkpoint=document_of(
            documents.StoredCheckpoint, checkpoint, label=checkpoint_label(checkpoint), **place_of(checkpoint)
        ),
        suite=documents.ResultSuite(
            name=", ".join(evaluation.suite for evaluation in evaluations),
            digest=evaluations[0].suite_digest if len(evaluations) == 1 else None,
            tasks=[
                {"kind": task.kind, "name": task.name, **task.parameters}
                for evaluation in evaluations
                for task in evaluation.tasks
            ],
        ),
        state=next(state for state in WORST_FIRST if state in states),
        evaluations=[document_of(documents.EvaluationSummary, evaluation) for evaluation in evaluations],
        metrics=list(newest.values()),
        protocols={identity: protocols[identity] for identity in used},
        artifacts={},
        errors={
            name: documents.Error(**error)
            for name, task in tasks.items()
            if (error := task.error or (task.evaluation.error if task.state == "cancelled" else None))
        },
        warnings={
            name: [documents.TaskWarning(**warning) for warning in task.warnings]
            for name, task in tasks.items()
            if task.warnings
        },
        provenance={name: task.provenance for name, task in tasks.items() if task.provenance is not None},
    )
    return document, _tables(folder, tasks)


def evaluated_steps(session: Session, run: str, variant: str, suite: str | None = None) -> list[int]:
    """Return the sorted steps at which a run's current checkpoints have an evaluation (by the suite), in any state."""
    query = (
        select(Checkpoint.step, Checkpoint.variant, Evaluation.suite)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.run_id == find_run(session, run).id, Checkpoint.replaced_at.is_(None))
        .distinct()
    )
    rows = session.execute(query).all()
    known = {"variant": {row.variant for row in rows}, "suite": {row.suite for row in rows}}
    for kind, name in (("variant", variant), ("suite", suite)):
        if name is not None and name not in known[kind]:
            raise UnknownName.among(f"evaluated {kind} of run {run!r}", name, known[kind])
    steps = sorted({row.step for row in rows if row.variant == variant and suite in (None, row.suite)})
    if not steps:
        raise UnknownName(
            f"suite {suite!r} evaluated no checkpoint of run {run!r} with variant {variant!r}; leave out the suite, or "
            "name another variant"
        )
    return steps


def read_task_items(evaluation: Evaluation, folder: Path, task: str | None = None) -> dict[str, ItemTable]:
    """Return the results per item of an evaluation's succeeded tasks, by task."""
    names = [row.name for row in evaluation.tasks]
    if task is not None and task not in names:
        raise UnknownName.among(f"task of evaluation {evaluation.id}", task, names)
    chosen = {row.name: row for row in evaluation.tasks if task in (None, row.name)}
    return {name: read() for name, read in _tables(folder, chosen).items()}


def _newest_by_suite(checkpoint: Checkpoint, suite: str | None) -> list[Evaluation]:
    newest = {evaluation.suite: evaluation for evaluation in checkpoint.evaluations}
    if suite is not None:
        if suite not in newest:
            raise UnknownName.among(f"suite that evaluated {checkpoint_label(checkpoint)}", suite, newest)
        return [newest[suite]]
    if not newest:
        label = checkpoint_label(checkpoint)
        raise UnknownName(f"{label} has no evaluation yet; request an evaluation with POST /v1/evaluations")
    return sorted(newest.values(), key=lambda evaluation: evaluation.id)


def _tasks_by_name(evaluations: Iterable[Evaluation]) -> dict[str, Task]:
    tasks = [(evaluation.suite, task) for evaluation in evaluations for task in evaluation.tasks]
    names = Counter(task.name for _, task in tasks)
    return {task.name if names[task.name] == 1 else f"{suite}/{task.name}": task for suite, task in tasks}


def _tables(folder: Path, tasks: Mapping[str, Task]) -> dict[str, Callable[[], ItemTable]]:
    return {name: partial(read_table, folder, task) for name, task in tasks.items() if task.metrics is not None}


def read_table(folder: Path, task: Task) -> ItemTable:
    content = task.items if task.items_sha256 is None else task.items_sha256
    if content is None:
        return ItemTable.of(())
    return read_items(folder, content, f"task {task.name!r} of evaluation {task.evaluation_id}")


def read_completions(
    session: Session, folder: Path, run: Run, variant: str | None = None, prompt: str | None = None
) -> Completions:
    """Read the completions of prompts that contain `prompt`, by the run's current checkpoints in the order of steps,
    from the newest evaluations. The previous completion has the same variant, task, prompt, way and protocol."""
    tasks = session.execute(
        select(Checkpoint.step, Checkpoint.variant, Task)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .join(Task, Task.evaluation_id == Evaluation.id)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .where(Task.kind == "completions", Task.state == "succeeded")
        .order_by(Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index)
    )
    newest = {(step, variant, task.name): task for step, variant, task in tasks}
    variants, prompts = {key[1] for key in newest}, set[str]()
    if variant is not None and variant not in variants:
        raise UnknownName.among("variant with completions", variant, variants)
    last: dict[tuple[object, ...], tuple[int, list[int]]] = {}
    steps = []
    for (step, variant_of_step, name), task in newest.items():
        if variant not in (None, variant_of_step):
            continue
        completions = []
        for row in read_table(folder, task).rows():
            prompts.add(str(row["prompt"]))
            if prompt is None or prompt in str(row["prompt"]):
                key = (variant_of_step, name, row["prompt"], row["way"], row.get("protocol"))
                ids = row.get("ids")
                change = None
                if isinstance(ids, list):
                    if key in last:
                        before, previous = last[key]
                        prefix, edits = common_prefix(previous, ids), edit_distance(previous, ids)
                        same = previous == ids
                        change = Change(step=before, same=same, common_prefix=prefix, edit_distance=edits)
                    last[key] = step, ids
                completions.append(Completion.model_validate({**row, "previous": change}))
        if completions or prompt is None:
            steps.append(StepCompletions(step=step, variant=variant_of_step, task=name, completions=completions))
    if prompt is not None and not steps:
        raise UnknownName.among("prompt", prompt, prompts)
    return Completions(run=run.name, steps=steps)


def common_prefix(before: Sequence[int], after: Sequence[int]) -> int:
    """Return the number of leading ids that both sequences share."""
    shorter = min(len(before), len(after))
    return next((position for position in range(shorter) if before[position] != after[position]), shorter)


def edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """Return the Levenshtein distance: the fewest ids to insert, delete or replace to turn `before` into `after`.

    Two integers encode a column of the table of distances: their bits say where the column rises and where it falls.
    Source: Hyyrö, "Explaining and Extending the Bit-parallel Approximate String Matching Algorithm of Myers" (2001),
    figure 3.
    """
    positions: dict[int, int] = {}
    for position, token in enumerate(before):
        positions[token] = positions.get(token, 0) | 1 << position
    used = (1 << len(before)) - 1
    rises, falls = used, 0
    for token in after:
        matches = positions.get(token, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        grows, shrinks = (falls | ~(diagonal | rises)) << 1 | 1, (rises & diagonal) << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & used, grows & diagonal & used
    return len(after) + rises.bit_count() - falls.bit_count()
