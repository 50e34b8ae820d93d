"""Pruning artifacts by rule: first the rows, then the contents that no remaining row names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy.orm import Session

from evalsvc.config import Settings
from evalsvc.files.artifacts import drop_contents
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.artifacts import find_prunable, mark_pruned
from evalsvc.store.named_files import asked_anew, named_artifacts

PRUNE_EVERY = 3600.0
"""Seconds between two prunings by the service."""

Transaction = Callable[[], AbstractContextManager[Session]]


def prune(
    settings: Settings, writing: Transaction, reading: Transaction, *, run: str | None = None, dry_run: bool = False
) -> documents.Pruned:
    """Prune artifacts that the rules do not keep, of all runs or of one; with `dry_run` only count them.

    If the service dies in between, nothing is lost: leftover contents are swept at the next start.

    Raises:
        UnknownName: no run has this name.
        InvalidRequest: EVALSVC_RETENTION is not a rule.
    """
    default = parse_retention(settings.retention)
    with reading() if dry_run else writing() as session:
        prunable = find_prunable(session, default, run)
        if not dry_run:
            mark_pruned(session, prunable)
    freed = 0
    if not dry_run:
        freed = drop_contents(settings.artifacts_path, prunable.contents, asked_anew(reading, named_artifacts))
    return documents.Pruned(
        artifacts=len(prunable.ids),
        bytes=sum(prunable.contents.values()),
        freed_bytes=freed,
        runs=prunable.by_run,
        dry_run=dry_run,
    )
