"""The list of evaluations."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from evalsvc.spec import documents
from evalsvc.store.lists.filters import Filters
from evalsvc.store.lists.pages import Order, PageRequest, read_page
from evalsvc.store.tables import Checkpoint, Evaluation, Run
from evalsvc.store.views import document_of


def evaluations_view(session: Session, filters: Filters, page: PageRequest) -> documents.Evaluations:
    """Return a page of the evaluations, the newest first, including evaluations of replaced checkpoints.

    Raises:
        UnknownName: a filter names an unknown run or variant.
        InvalidRequest: the cursor is from another list or from other filters.
    """
    query = select(Evaluation, Run.name.label("run"), Checkpoint.step, Checkpoint.variant)
    query = query.join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id).join(Run, Run.id == Checkpoint.run_id)
    query = query.where(*filters.of_checkpoints(session))
    if filters.suite is not None:
        query = query.where(Evaluation.suite == filters.suite)
    if filters.state is not None:
        query = query.where(Evaluation.state == filters.state)
    order = Order([Evaluation.id], descending=True)
    rows, next_cursor = read_page(session, query, order, ["evaluations", asdict(filters)], page)
    return documents.Evaluations(
        evaluations=[
            document_of(
                documents.ListedEvaluation,
                row.Evaluation,
                checkpoint=row.Evaluation.checkpoint_id,
                run=row.run,
                step=row.step,
                variant=row.variant,
                suite=documents.SuiteVersion(name=row.Evaluation.suite, digest=row.Evaluation.suite_digest),
            )
            for row in rows
        ],
        next_cursor=next_cursor,
    )
