"""The version of a run's history, which grows with every change of the history. The ETag of answers contains it."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from evalsvc.spec.protocol import digest
from evalsvc.store.tables import Run

Remember = Callable[[str, str, Callable[[], bytes]], bytes]
"""A cache of contents: a function of the name of a run, of a tag that changes whenever the content does, and of a
function that makes the content."""


def touch_history(session: Session, run_id: int) -> None:
    """Increment the version of a run's history, as a part of this transaction.

    Call this function before you write the first row of the history. The function locks the run's row, so that two
    writers of a run wait for each other here, and cannot deadlock on the values.
    """
    session.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(history_version=Run.history_version + 1)
        .execution_options(synchronize_session=False)
    )


def lock_history(session: Session, run_id: int) -> None:
    """Block other writers of a run's history until the transaction ends, without a new version of the history."""
    session.execute(select(Run.id).where(Run.id == run_id).with_for_update(key_share=True))


def history_tag(run: Run, program: str, question: object) -> str:
    """Return a tag that changes whenever this program's answer to a question about a run's history may change.

    Compute the tag before you read the history. Without a common snapshot, the tag may then be older than the history,
    so that a client asks once more than necessary, but never keeps an old answer.
    """
    # SQLite may reuse the id of a deleted run, but the time of creation differs.
    begun = run.created_at.isoformat()
    return digest([program, run.id, begun, run.history_version, question])[:32]
