"""Completions of fixed prompts by a run's checkpoints, each compared with the completion of the step before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.items import Change, Completions, StepCompletions
from evalsvc.spec.documents.reading import content_of
from evalsvc.store.edit_distance import common_prefix, edit_distance
from evalsvc.store.results import read_table
from evalsvc.store.tables import Checkpoint, Evaluation, Run, Task

Item = dict[str, object]


def read_completions(
    session: Session, folder: Path, run: Run, variant: str | None = None, prompt: str | None = None
) -> Completions:
    """Read the completions of fixed prompts by the run's current checkpoints, in the order of steps.

    The newest evaluation with a task of this name gives the completions of the task at a step.

    Args:
        folder: the folder with the files of results per item.
        prompt: keep only prompts that contain this text.

    Raises:
        UnknownName: the run has no completions of the variant or of the prompt; near names are listed.
    """
    steps = list(_read_steps(session, folder, run))
    if variant is not None:
        variants = {step.variant for step in steps}
        if variant not in variants:
            raise UnknownName.among("variant with completions", variant, variants)
        steps = [step for step in steps if step.variant == variant]
    if prompt is not None:
        steps = _with_prompt(steps, prompt)
    return Completions(run=run.name, steps=list(_with_previous(steps)))


def _read_steps(session: Session, folder: Path, run: Run) -> Iterator[StepCompletions]:
    rows = session.execute(
        select(Checkpoint.step, Checkpoint.variant, Task)
        .join(Evaluation, Evaluation.checkpoint_id == Checkpoint.id)
        .join(Task, Task.evaluation_id == Evaluation.id)
        .where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
        .where(Task.kind == "completions", Task.state == "succeeded")
        .order_by(Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index)
    )
    newest = {(step, variant, task.name): task for step, variant, task in rows}
    for (step, variant, name), task in newest.items():
        completions = list(read_table(folder, task).rows())
        yield StepCompletions(step=step, variant=variant, task=name, completions=completions)


def _with_prompt(steps: Iterable[StepCompletions], prompt: str) -> list[StepCompletions]:
    chosen = [
        replace(step, completions=[item for item in step.completions if prompt in str(item["prompt"])])
        for step in steps
    ]
    if not any(step.completions for step in chosen):
        raise UnknownName.among("prompt", prompt, {str(item["prompt"]) for step in steps for item in step.completions})
    return [step for step in chosen if step.completions]


def _with_previous(steps: Iterable[StepCompletions]) -> Iterator[StepCompletions]:
    """Yield the steps, with the change since the previous completion as `previous` of each completion.

    The previous completion has the same variant, task, prompt, way and protocol. `previous` of the first completion
    is None.
    """
    last: dict[tuple[object, ...], tuple[int, list[int]]] = {}
    for step in steps:
        completions: list[Item] = []
        for item in step.completions:
            key = (step.variant, step.task, item["prompt"], item["way"], item.get("protocol"))
            ids = item.get("ids")
            previous: Item | None = None
            if isinstance(ids, list):
                previous = content_of(_change(*last[key], ids)) if key in last else None
                last[key] = step.step, ids
            completions.append({**item, "previous": previous})
        yield replace(step, completions=completions)


def _change(step: int, before: list[int], ids: list[int]) -> Change:
    prefix, edits = common_prefix(before, ids), edit_distance(before, ids)
    return Change(step=step, same=before == ids, common_prefix=prefix, edit_distance=edits)
