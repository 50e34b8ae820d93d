"""Completions of fixed prompts by a run's checkpoints, each compared with the completion of the step before."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec.documents.results import Change, Completion, Completions, StepCompletions
from evalsvc.store.edit_distance import common_prefix, edit_distance
from evalsvc.store.results import read_table
from evalsvc.store.tables import Checkpoint, Evaluation, Run, Task


def read_completions(
    session: Session, folder: Path, run: Run, variant: str | None = None, prompt: str | None = None
) -> Completions:
    """Read the completions of fixed prompts by the run's current checkpoints, in the order of steps.

    The newest evaluation with a task of this name gives the completions of the task at a step. The previous completion
    has the same variant, task, prompt, way and protocol.

    Args:
        folder: the folder with the files of results per item.
        prompt: keep only prompts that contain this text.
    """
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
                change = _change(*last[key], ids) if isinstance(ids, list) and key in last else None
                if isinstance(ids, list):
                    last[key] = step, ids
                completions.append(Completion.model_validate({**row, "previous": change}))
        if completions or prompt is None:
            steps.append(StepCompletions(step=step, variant=variant_of_step, task=name, completions=completions))
    if prompt is not None and not steps:
        raise UnknownName.among("prompt", prompt, prompts)
    return Completions(run=run.name, steps=steps)


def _change(step: int, before: list[int], ids: list[int]) -> Change:
    prefix, edits = common_prefix(before, ids), edit_distance(before, ids)
    return Change(step=step, same=before == ids, common_prefix=prefix, edit_distance=edits)
