"""References to checkpoints for workers, made from rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evalsvc.checkpoints.expression_parser import parse_expression
from evalsvc.checkpoints.reference import CheckpointRef, Identity, Virtual
from evalsvc.store.lookup import checkpoint_label, step_of
from evalsvc.store.tables import Checkpoint


def checkpoint_reference(checkpoint: Checkpoint, spooled: Callable[[Checkpoint], Path]) -> CheckpointRef:
    """Return the reference by which a worker opens a checkpoint, or all parents of a virtual checkpoint.

    `spooled` returns the path of a checkpoint's copy in the spool.
    """
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
    is_spooled = checkpoint.spool_state == "ready"
    return CheckpointRef(
        path=str(spooled(checkpoint)) if is_spooled else checkpoint.path,
        identity=Identity(checkpoint.size, checkpoint.mtime_ns, None if is_spooled else checkpoint.etag),
        sha256=checkpoint.sha256,
        model=checkpoint.model,
        layout=checkpoint.layout,
        label=checkpoint_label(checkpoint),
    )
