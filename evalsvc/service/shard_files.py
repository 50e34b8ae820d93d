"""Large outputs of shards: written to files of the data folder before rows name them, and removed when no row does. A
merge gets the names, and workers read the files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten
from evalsvc.files.artifacts import drop_orphans, keep_artifact
from evalsvc.files.items import keep_items, pack_items, sweep_items
from evalsvc.files.kept import KeptFolder
from evalsvc.files.outputs import drop_output, drop_outputs, keep_output, sweep_outputs
from evalsvc.files.shared import shared_owner
from evalsvc.messages import KeptResult, MergeResult, ShardError, ShardOutput, ShardResult
from evalsvc.store.named_files import named_artifacts, named_items, named_outputs
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
        """Write the large parts of a result to files; return the result with the files' names in their place.

        If a file cannot be written, the returned result is that error.
        """
        if result.error is not None:
            return result
        try:
            output = self._keep(assignment, result.output)
        except ArtifactNotWritten as error:
            return ShardResult(error=ShardError(error.code, error.message), provenance=result.provenance)
        return replace(result, output=output)

    def keep_new(self, files: Mapping[str, bytes]) -> None:
        """Write new files for later evaluations. Raises DataDirectoryUnusable, and ValueError for an invalid name."""
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
            return KeptResult(
                output.metrics,
                output.protocols,
                keep_items(self._items, pack_items(output.items)),
                output.notes,
                [keep_artifact(self._artifacts, artifact) for artifact in output.artifacts],
                output.warnings,
            )
        return output
