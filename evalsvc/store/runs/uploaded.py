"""Checkpoints from uploads. Their uri is `upload:` and the SHA-256 of the file, and the spool has the file."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.reference import UPLOAD
from evalsvc.store.runs.posting import Submitted
from evalsvc.store.tables import OVER, Checkpoint


def uploaded_bytes(session: Session) -> int:
    """Return the total bytes of uploaded checkpoints in the spool."""
    query = select(func.sum(Checkpoint.size)).where(
        Checkpoint.spool_state == "ready", Checkpoint.uri.startswith(UPLOAD, autoescape=True)
    )
    return int(session.scalar(query) or 0)


def needs_file(submitted: Submitted) -> bool:
    """Tell whether the spool needs the file of an uploaded checkpoint and does not have it."""
    waits = any(evaluation.state not in OVER for evaluation in submitted.evaluations)
    return submitted.checkpoint.spool_state != "ready" and (submitted.created or waits)
