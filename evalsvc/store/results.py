"""What an evaluation found, whole: the result of a checkpoint, results per item, completions along a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.edit_distance import common_prefix, edit_distance
from evalsvc.errors import UnknownName
from evalsvc.store.queue import checkpoint_label
from evalsvc.store.submission import find_run, find_step
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Run, Task
from evalsvc.store.views import artifact_view, evaluation_summary, protocols_view

WORST_FIRST = ("running", "queued", "failed", "partly_failed", "cancelled", "succeeded")
"""States of evaluations. Whoever waits for several waits until none of the first two is among them."""

COMPLETIONS = "completions"
"""The kind of the tasks whose items are completions."""


def read_results(session: Session, run: str, step: int, variant: str, suite: str | None = None) -> dict[str, Any]:
    """What is known of a checkpoint: the document that `runner.run_suite` makes, of its suites' newest evaluations.

    Several suites are put together. A task whose name two of them share is called `<suite>/<task>`; every metric says
    whose it is by `task`. Artifacts are references, and `state` is the worst of the evaluations'.

    Raises:
        UnknownName: there is no such run, step or variant, or no evaluation of it (by the suite).
    """
    checkpoint = find_step(session, find_run(session, run), step, variant)
    evaluations = _newest_by_suite(checkpoint, suite)
    names = Counter(task.name for evaluation in evaluations for task in evaluation.tasks)
    tasks = {
        task.name if names[task.name] == 1 else f"{evaluation.suite}/{task.name}": task
        for evaluation in evaluations
        for task in evaluation.tasks
    }
    metrics = _metrics(tasks)
    states = {evaluation.state for evaluation in evaluations}
    return {
        "checkpoint": _checkpoint(checkpoint),
        "suite": _suite(evaluations),
        "state": next(state for state in WORST_FIRST if state in states),
        "evaluations": [evaluation_summary(evaluation) for evaluation in evaluations],
        "metrics": metrics,
        "protocols": protocols_view(session, metrics),
        "items": {name: task.items for name, task in tasks.items() if task.items is not None},
        "artifacts": _artifacts(session, tasks),
        "errors": {name: error for name, task in tasks.items() if (error := _error(task))},
        "provenance": {name: task.provenance for name, task in tasks.items() if task.provenance is not None},
    }


def read_items(evaluation: Evaluation, task: str | None = None, benchmark: str | None = None) -> dict[str, Any]:
    """The results per item of an evaluation's tasks that have succeeded, by task, in the order of the data.

    Raises:
        UnknownName: the evaluation has no such task, or no item of such a benchmark.
    """
    names = [each.name for each in evaluation.tasks]
    if task is not None and task not in names:
        raise UnknownName.among(f"task of evaluation {evaluation.id}", task, names)
    chosen = [each for each in evaluation.tasks if task in (None, each.name) and each.items is not None]
    items = {each.name: each.items or [] for each in chosen}
    if benchmark is not None:
        known = {str(item["benchmark"]) for found in items.values() for item in found if "benchmark" in item}
        if benchmark not in known:
            raise UnknownName.among(f"benchmark of evaluation {evaluation.id}", benchmark, known)
        of = {name: [item for item in found if item.get("benchmark") == benchmark] for name, found in items.items()}
        items = {name: found for name, found in of.items() if found}
    return {"evaluation": evaluation.id, "state": evaluation.state, "items": items}


def read_completions(
    session: Session, run: Run, variant: str | None = None, prompt: str | None = None
) -> dict[str, Any]:
    """What the run's current checkpoints made of fixed prompts, by step; of each task the newest evaluation.

    `prompt` chooses the prompts that it is a part of. Every completion also has `previous`, how it differs from that
    of the step before which was drawn in the same way; see `_with_previous`.

    Raises:
        UnknownName: nothing of this variant, or no such prompt, was completed; near ones are named.
    """
    found = _completed(session, run)
    if variant is not None:
        variants = {row["variant"] for row in found}
        if variant not in variants:
            raise UnknownName.among("variant with completions", variant, variants)
        found = [row for row in found if row["variant"] == variant]
    if prompt is not None:
        found = _with_prompt(found, prompt)
    return {"run": run.name, "steps": _with_previous(found)}


def _newest_by_suite(checkpoint: Checkpoint, suite: str | None) -> list[Evaluation]:
    """In the order in which they were asked for."""
    newest = {evaluation.suite: evaluation for evaluation in checkpoint.evaluations}
    if suite is not None:
        if suite not in newest:
            raise UnknownName.among(f"suite that evaluated {checkpoint_label(checkpoint)}", suite, newest)
        return [newest[suite]]
    if not newest:
        raise UnknownName(f"{checkpoint_label(checkpoint)} has no evaluation yet; ask for one by POST /v1/evaluations")
    return sorted(newest.values(), key=lambda evaluation: evaluation.id)


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": checkpoint.path,
        "label": checkpoint_label(checkpoint),
        "sha256": checkpoint.sha256,
        "id": checkpoint.id,
        "run": checkpoint.run.name,
        "step": checkpoint.step,
        "variant": checkpoint.variant,
    }


def _suite(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    tasks = [task for evaluation in evaluations for task in evaluation.tasks]
    return {
        "name": ", ".join(evaluation.suite for evaluation in evaluations),
        "digest": evaluations[0].suite_digest if len(evaluations) == 1 else None,
        "tasks": [{"kind": task.kind, "name": task.name, **task.parameters} for task in tasks],
    }


def _metrics(tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Every metric with its task; of one that two tasks give under one protocol, the newer value."""
    found = {}
    for name, task in tasks.items():
        for metric in task.metrics or []:
            found[metric["name"], metric["protocol"]] = {**metric, "task": name}
    return list(found.values())


def _artifacts(session: Session, tasks: Mapping[str, Task]) -> dict[str, list[dict[str, Any]]]:
    names = {task.id: name for name, task in tasks.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, task in tasks.items() if task.metrics is not None}
    for artifact in session.scalars(select(Artifact).where(Artifact.task_id.in_(names)).order_by(Artifact.id)):
        found.setdefault(names[artifact.task_id], []).append(artifact_view(artifact))
    return found


def _error(task: Task) -> dict[str, Any] | None:
    """Why a task has no metrics; a cancelled one knows it from its evaluation."""
    return task.error or (task.evaluation.error if task.state == "cancelled" else None)


def _completed(session: Session, run: Run) -> list[dict[str, Any]]:
    rows = session.execute(
        select(Checkpoint.step, Checkpoint.variant, Task.name, Task.items)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .join(Task, Task.evaluation_id == Evaluation.id)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .where(Task.kind == COMPLETIONS, Task.state == "succeeded")
        .order_by(Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index)
    )
    newest = {(step, variant, task): items for step, variant, task, items in rows}
    return [
        {"step": step, "variant": variant, "task": task, "completions": items}
        for (step, variant, task), items in newest.items()
    ]


def _with_previous(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each completion beside the one before it in the run: of the same variant, task, prompt, way and protocol.

    `previous` has that one's `step`, whether both are the `same` to the last id, how many ids they begin with in
    common (`common_prefix`), and their `edit_distance` in ids. It is None where there is none before.
    """
    last: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
    rows = []
    for row in found:
        completions = []
        for item in row["completions"]:
            key = (row["variant"], row["task"], item["prompt"], item["way"], item.get("protocol"))
            completions.append({**item, "previous": _change(last.get(key), item.get("ids"))})
            if "ids" in item:
                last[key] = row["step"], item["ids"]
        rows.append({**row, "completions": completions})
    return rows


def _change(before: tuple[int, list[int]] | None, ids: list[int] | None) -> dict[str, Any] | None:
    if before is None or ids is None:
        return None
    step, old = before
    return {
        "step": step,
        "same": old == ids,
        "common_prefix": common_prefix(old, ids),
        "edit_distance": edit_distance(old, ids),
    }


def _with_prompt(found: Iterable[Mapping[str, Any]], prompt: str) -> list[dict[str, Any]]:
    chosen = [
        {**row, "completions": [item for item in row["completions"] if prompt in item["prompt"]]} for row in found
    ]
    if not any(row["completions"] for row in chosen):
        known = {item["prompt"] for row in found for item in row["completions"]}
        raise UnknownName.among("prompt", prompt, known)
    return [row for row in chosen if row["completions"]]
