"""Lists of the artifacts of an evaluation or a run."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.errors import UnknownName
from evalsvc.spec import documents
from evalsvc.store.lists.pages import AnySelect, Order, PageRequest, read_page
from evalsvc.store.tables import Artifact, Checkpoint, Evaluation, Run, Task
from evalsvc.store.views import document_of

KINDS = {
    *("completions", "flipped", "forgetting", "grid"),
    *("loss_profile", "nearest_tokens", "sample", "table"),
}
"""Kinds of artifacts that the tasks of evalsvc leave. The tasks of plug-ins may leave artifacts of other kinds."""


def evaluation_artifacts(
    session: Session, evaluation_id: int, kind: str | None, page: PageRequest
) -> documents.Artifacts:
    """Return a page of an evaluation's artifacts, in the order of the evaluation's tasks.

    Raises:
        UnknownName: the evaluation has artifacts, and no task of evalsvc and no artifact of the service has this kind.
        InvalidRequest: the cursor is from another list or from other filters.
    """
    query = _described().where(Task.evaluation_id == evaluation_id)
    question = ["artifacts of evaluation", evaluation_id, kind]
    return _page(session, query, kind, Order([Task.index, Artifact.id]), question, page)


def run_artifacts(
    session: Session, run: Run, kind: str | None, step: int | None, page: PageRequest
) -> documents.Artifacts:
    """Return a page of the artifacts of all evaluations of a run's current checkpoints, ordered by step.

    Raises:
        UnknownName: the run has artifacts, and no task of evalsvc and no artifact of the service has this kind.
        InvalidRequest: the cursor is from another list or from other filters.
    """
    query = _described().where(Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
    if step is not None:
        query = query.where(Checkpoint.step == step)
    order = Order([Checkpoint.step, Checkpoint.variant, Evaluation.id, Task.index, Artifact.id])
    return _page(session, query, kind, order, ["artifacts of run", run.id, kind, step], page)


def _described() -> AnySelect:
    """Return the query of artifacts with their task, evaluation, run, step and variant."""
    return (
        select(
            Artifact,
            Task.name.label("task"),
            Task.evaluation_id,
            Run.name.label("run"),
            Checkpoint.step,
            Checkpoint.variant,
        )
        .join(Task, Task.id == Artifact.task_id)
        .join(Evaluation, Evaluation.id == Task.evaluation_id)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .join(Run, Run.id == Checkpoint.run_id)
    )


def _page(
    session: Session, query: AnySelect, kind: str | None, order: Order, question: object, page: PageRequest
) -> documents.Artifacts:
    if kind is not None:
        _require_kind(session, query, kind)
        query = query.where(Artifact.kind == kind)
    rows, next_cursor = read_page(session, query, order, question, page)
    return documents.Artifacts(
        artifacts=[
            document_of(
                documents.Artifact,
                row.Artifact,
                evaluation=row.evaluation_id,
                run=row.run,
                step=row.step,
                variant=row.variant,
                task=row.task,
            )
            for row in rows
        ],
        next_cursor=next_cursor,
    )


def _require_kind(session: Session, query: AnySelect, kind: str) -> None:
    """Raise UnknownName for a kind that no task and no artifact has, unless the query has no artifacts."""
    if kind in KINDS or session.scalar(select(Artifact.id).where(Artifact.kind == kind).limit(1)) is not None:
        return
    kinds = session.scalars(query.with_only_columns(Artifact.kind).distinct()).all()
    if kinds:
        raise UnknownName.among("kind of artifact", kind, kinds)
