"""A number that changes whenever reading a run's history would give something else; its ETag is made of it."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from evalsvc.spec.protocol import digest
from evalsvc.store.tables import Run


def touch_history(session: Session, run_id: int) -> None:
    """Say in this transaction that a run's history changes.

    Call it before the first row of the history is written: the run's row is locked by it, so that two writers of one
    run wait for each other here and not, crosswise, at its values.
    """
    session.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(history_version=Run.history_version + 1)
        .execution_options(synchronize_session=False)
    )


def lock_history(session: Session, run_id: int) -> None:
    """Keep other writers of a run's history out until this transaction is over, which may not change it after all."""
    session.execute(select(Run.id).where(Run.id == run_id).with_for_update(key_share=True))


def history_tag(run: Run, program: str, question: object) -> str:
    """What stays the same as long as the answer of this program to a question about a run's history does.

    Read it before the history: where both are not on one snapshot, the tag is then the older of the two, and all that
    happens is that the answer is asked for once more.
    """
    # An id is given again after its run was deleted; the moment at which a run began is not.
    begun = run.created_at.isoformat()
    return digest([program, run.id, begun, run.history_version, question])[:32]
