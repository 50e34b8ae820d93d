"""The list of checkpoints, and the document of a run with its checkpoints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.store.lists.filters import Filters
from evalsvc.store.lists.pages import Order, PageRequest, read_page
from evalsvc.store.runs.base import base_view
from evalsvc.store.tables import Checkpoint, Evaluation, Run
from evalsvc.store.views import document_of, plan_view

MAX_CHECKPOINTS = 500
"""The most checkpoints in the document of a run."""

MAX_EVALUATIONS = 20
"""The most evaluations of each checkpoint in a list, so that a page stays small."""

IN_RUN = (Checkpoint.step, Checkpoint.variant)
"""The order of a run's current checkpoints."""


def checkpoints_view(session: Session, filters: Filters, page: PageRequest) -> documents.Checkpoints:
    """Return a page of the current checkpoints, ordered by run (the oldest first), step and variant.

    Raises:
        UnknownName: a filter names an unknown run or variant.
        InvalidRequest: the cursor is from another list or from other filters.
    """
    query = select(Checkpoint, Run.name).join(Run).where(Checkpoint.replaced_at.is_(None))
    query = query.where(*filters.of_checkpoints(session))
    if filters.state is not None:
        evaluated = select(Evaluation.id).where(Evaluation.checkpoint_id == Checkpoint.id)
        query = query.where(evaluated.where(Evaluation.state == filters.state).exists())
    order = Order([Checkpoint.run_id, *IN_RUN])
    rows, next_cursor = read_page(session, query, order, ["checkpoints", asdict(filters)], page)
    evaluations = _newest_evaluations(session, [row.Checkpoint.id for row in rows])
    return documents.Checkpoints(
        checkpoints=[
            document_of(
                documents.ListedCheckpoint,
                row.Checkpoint,
                run=row.name,
                evaluations=evaluations.get(row.Checkpoint.id, []),
            )
            for row in rows
        ],
        next_cursor=next_cursor,
    )


def run_view(session: Session, run: Run) -> documents.Run:
    """Return a run with its plan, its base, and the checkpoints of the highest steps with their newest evaluations."""
    current = (Checkpoint.run_id == run.id, Checkpoint.replaced_at.is_(None))
    newest_first = select(Checkpoint).where(*current).order_by(*(column.desc() for column in IN_RUN))
    checkpoints = session.scalars(newest_first.limit(MAX_CHECKPOINTS)).all()[::-1]
    evaluations = _newest_evaluations(session, [checkpoint.id for checkpoint in checkpoints])
    return document_of(
        documents.Run,
        run,
        plan=plan_view(run),
        base=base_view(session, run),
        checkpoints=[
            document_of(documents.RunCheckpoint, checkpoint, evaluations=evaluations.get(checkpoint.id, []))
            for checkpoint in checkpoints
        ],
        checkpoint_count=session.scalar(select(func.count()).select_from(Checkpoint).where(*current)),
    )


def _newest_evaluations(
    session: Session, checkpoint_ids: Collection[int]
) -> dict[int, list[documents.EvaluationSummary]]:
    """Return the newest MAX_EVALUATIONS evaluations of each checkpoint in ascending order, by checkpoint id."""
    age = func.row_number().over(partition_by=Evaluation.checkpoint_id, order_by=Evaluation.id.desc())
    columns = (Evaluation.id, Evaluation.checkpoint_id, Evaluation.suite, Evaluation.state)
    ranked = select(*columns, age.label("age")).where(Evaluation.checkpoint_id.in_(checkpoint_ids)).subquery()
    evaluations: dict[int, list[documents.EvaluationSummary]] = {}
    for row in session.execute(select(ranked).where(ranked.c.age <= MAX_EVALUATIONS).order_by(ranked.c.id)):
        evaluations.setdefault(row.checkpoint_id, []).append(document_of(documents.EvaluationSummary, row))
    return evaluations
