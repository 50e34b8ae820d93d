"""Large outputs of shards: written to files of the data folder before rows name them, and removed when no row does. A
merge gets the names, and workers read the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from sqlalchemy.orm import Session

from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten
from evalsvc.files.artifacts import drop_contents, drop_orphans, keep_artifact
from evalsvc.files.items import keep_items, pack_items, sweep_items
from evalsvc.files.kept import KeptFolder, shared_owner
from evalsvc.files.outputs import drop_output, drop_outputs, keep_output, sweep_outputs
from evalsvc.files.uploads import SWEEP_EVERY, Uploads
from evalsvc.messages import KeptResult, MergeResult, ShardError, ShardOutput, ShardResult
from evalsvc.spec import documents
from evalsvc.spec.artifact_policy import parse_retention
from evalsvc.store.artifacts import find_prunable, mark_pruned
from evalsvc.store.data_folder import asked_anew, named_artifacts, named_items, named_outputs
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.session import Store

log = logging.getLogger(__name__)


class ShardFiles:
    """The outputs, results per item and artifacts of shards, in the folders of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._outputs = settings.outputs_path
        self._items = settings.items_path
        self._artifacts = settings.artifacts_path
        self._kept = KeptFolder(settings.statistics_path)
        self.service = shared_owner(settings.shared_path)
        """Id by which workers recognise the shared folder."""

    def keep(self, assignment: Assignment, result: ShardResult) -> ShardResult:
        """Write the large parts of a result to files; return the result with the files' names in their place. If a file
        cannot be written, the returned result is that error."""
        if result.error is not None:
            return result
        try:
            output = self._keep(assignment, result.output)
        except ArtifactNotWritten as error:
            return ShardResult(error=ShardError(error.code, error.message), provenance=result.provenance)
        return replace(result, output=output)

    def keep_new(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._kept.keep_bytes(name, content)

    def drop(self, assignment: Assignment, *, succeeded: bool) -> None:
        """Remove the output of a failed attempt, or the outputs that a merge has consumed."""
        if not succeeded:
            drop_output(self._outputs, assignment.task_id, assignment.shard_id, assignment.attempt)
        elif assignment.request.stage == "merge":
            drop_outputs(self._outputs, assignment.task_id)

    def sweep(self, store: Store) -> None:
        """Remove unreferenced files of a killed service."""
        with store.reading() as session:
            outputs, items = named_outputs(session), named_items(session)
            artifacts = named_artifacts(session)
        swept = sweep_outputs(self._outputs, outputs) + sweep_items(self._items, items)
        swept += drop_orphans(self._artifacts, artifacts)
        if swept:
            log.info("%d files that nothing names were removed", swept)

    def _keep(self, assignment: Assignment, output: ShardOutput | None) -> ShardOutput | None:
        if isinstance(output, bytes):
            place = {"task": assignment.task_id, "shard": assignment.shard_id, "attempt": assignment.attempt}
            return keep_output(self._outputs, output, **place)
        if isinstance(output, MergeResult):
            items = keep_items(self._items, pack_items(output.items))
            artifacts = [keep_artifact(self._artifacts, artifact) for artifact in output.artifacts]
            return KeptResult(output.metrics, output.protocols, items, output.notes, artifacts, output.warnings)
        return output


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
    """Prune artifacts that the rules do not keep, of all runs or of one; with `dry_run` only count them. The rows go
    first, and then the contents that no remaining row names. If the service dies in between, nothing is lost: leftover
    contents are swept at the next start."""
    default = parse_retention(settings.retention)
    with reading() if dry_run else writing() as session:
        prunable = find_prunable(session, default, run)
        if not dry_run:
            mark_pruned(session, prunable)
    freed = 0
    if not dry_run:
        freed = drop_contents(settings.artifacts_path, prunable.contents, asked_anew(reading, named_artifacts))
    number, size = len(prunable.ids), sum(prunable.contents.values())
    return documents.Pruned(artifacts=number, bytes=size, freed_bytes=freed, runs=prunable.by_run, dry_run=dry_run)
