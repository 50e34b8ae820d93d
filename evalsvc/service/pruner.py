"""Pruning artifacts by rule: the rows first, then the contents that no other row names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy.orm import Session

from evalsvc.config import Settings
from evalsvc.files.artifacts import drop_contents
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.named_files import asked_anew, named_artifacts
from evalsvc.store.runs.pruning import find_prunable, mark_pruned

PRUNE_EVERY = 3600.0
"""Seconds between two prunings by the service itself."""

Transaction = Callable[[], AbstractContextManager[Session]]


def prune(
    settings: Settings, writing: Transaction, reading: Transaction, *, run: str | None = None, dry_run: bool = False
) -> documents.Pruned:
    """Prune what the rules do not keep, of all runs or of one; says how much that was, or with `dry_run` would be.

    A service that dies meanwhile has lost nothing: contents that are left over are swept when it starts.

    Raises:
        UnknownName: there is no such run.
        InvalidRequest: EVALSVC_RETENTION is no rule.
    """
    default = parse_retention(settings.retention)
    with reading() if dry_run else writing() as session:
        found = find_prunable(session, default, run)
        if not dry_run:
            mark_pruned(session, found)
    freed = 0
    if not dry_run:
        freed = drop_contents(settings.artifacts_path, found.contents, asked_anew(reading, named_artifacts))
    return documents.Pruned(
        artifacts=len(found.ids),
        bytes=sum(found.contents.values()),
        freed_bytes=freed,
        runs=found.by_run,
        dry_run=dry_run,
    )
