"""What a worker needs to open a checkpoint, as its row says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from evalsvc.checkpoints.expression_parser import parse_expression
from evalsvc.checkpoints.reference import CheckpointRef, Identity, Virtual
from evalsvc.store.lookup import checkpoint_label, step_of
from evalsvc.store.tables import Checkpoint, checkpoint_parents

_HAVE_PARENTS = select(checkpoint_parents.c.checkpoint_id).where(
    checkpoint_parents.c.checkpoint_id.in_(bindparam("checkpoints", expanding=True))
)


def checkpoint_reference(checkpoint: Checkpoint, spooled: Callable[[Checkpoint], Path]) -> CheckpointRef:
    """What a worker needs to open a checkpoint, or all parents of a virtual one."""
    if checkpoint.parents:
        return CheckpointRef(
            path=checkpoint.uri,
            sha256=checkpoint.sha256,
            layout=checkpoint.layout,
            label=checkpoint_label(checkpoint),
            virtual=Virtual(
                parse_expression(checkpoint.uri),
                {str(step_of(parent)): checkpoint_reference(parent, spooled) for parent in checkpoint.parents},
            ),
        )
    kept = checkpoint.spool_state == "ready"
    return CheckpointRef(
        path=str(spooled(checkpoint)) if kept else checkpoint.path,
        identity=Identity(checkpoint.size, checkpoint.mtime_ns, None if kept else checkpoint.etag),
        sha256=checkpoint.sha256,
        model=checkpoint.model,
        layout=checkpoint.layout,
        label=checkpoint_label(checkpoint),
    )


def note_files(session: Session, checkpoints: Sequence[Checkpoint]) -> None:
    """Have those that are no virtual ones know it, of whose parents each would ask for itself."""
    virtual = set(session.scalars(_HAVE_PARENTS, {"checkpoints": [checkpoint.id for checkpoint in checkpoints]}))
    for checkpoint in checkpoints:
        if checkpoint.id not in virtual:
            set_committed_value(checkpoint, "parents", [])
