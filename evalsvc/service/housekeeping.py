"""Removal of files that nothing needs any more: files of a killed service, pruned artifacts, and expired uploads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy.orm import Session

from evalsvc.config import Settings
from evalsvc.files.artifacts import drop_contents
from evalsvc.files.uploads import SWEEP_EVERY, Uploads
from evalsvc.service.shard_files import ShardFiles
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.artifacts import find_prunable, mark_pruned
from evalsvc.store.named_files import asked_anew, named_artifacts
from evalsvc.store.session import Store

log = logging.getLogger(__name__)

PRUNE_EVERY = 3600.0
"""Seconds between two prunings by the service. The first comes as long after the start, so that a mistaken rule can be
corrected."""

Transaction = Callable[[], AbstractContextManager[Session]]


class Housekeeping:
    """The jobs of a service that remove files, each with the time at which it is due."""

    def __init__(self, store: Store, settings: Settings, files: ShardFiles) -> None:
        self._store = store
        self._settings = settings
        self._files = files
        self._jobs = {self._sweep: 0.0, self._prune: time.monotonic() + PRUNE_EVERY, self._sweep_uploads: 0.0}

    def run(self) -> None:
        """Do the jobs that are due. A job that fails stays due, and does not keep the others from their work."""
        problem: Exception | None = None
        for job, due in list(self._jobs.items()):
            if time.monotonic() >= due:
                try:
                    self._jobs[job] = time.monotonic() + job()
                except Exception as error:
                    problem = error
        if problem is not None:
            raise problem

    def _sweep(self) -> float:
        self._files.sweep(self._store)
        return float("inf")

    def _prune(self) -> float:
        pruned = prune(self._settings, self._store.transaction, self._store.reading)
        if pruned.artifacts:
            log.info("%d artifacts were pruned, %d bytes freed", pruned.artifacts, pruned.freed_bytes)
        return PRUNE_EVERY

    def _sweep_uploads(self) -> float:
        if removed := Uploads(self._settings.uploads_path, self._settings.upload_bytes).sweep():
            log.info("%d uploads that expired were removed", removed)
        return SWEEP_EVERY


def prune(
    settings: Settings, writing: Transaction, reading: Transaction, *, run: str | None = None, dry_run: bool = False
) -> documents.Pruned:
    """Prune artifacts that the rules do not keep, of all runs or of one; with `dry_run` only count them.

    The rows go first, and then the contents that no remaining row names. If the service dies in between, nothing is
    lost: leftover contents are swept at the next start.
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
