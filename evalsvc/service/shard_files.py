"""What shards send back that is too large for a row: written to files of the data folder before rows name it, and
removed when nothing names it any more. A merge gets the names: workers read the files."""

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
from evalsvc.messages import KeptResult, MergeResult, ShardError, ShardOutput, ShardResult
from evalsvc.store.named_files import named_artifacts, named_items, named_outputs
from evalsvc.store.queue.shards import Assignment
from evalsvc.store.session import Store

log = logging.getLogger(__name__)


class ShardFiles:
    """The outputs, results per item and artifacts of shards, in the folders that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._outputs = settings.outputs_path
        self._items = settings.items_path
        self._artifacts = settings.artifacts_path
        self._kept = KeptFolder(settings.statistics_path)

    def keep(self, assignment: Assignment, result: ShardResult) -> ShardResult:
        """The result as a transaction may store it: what is large in it is in files, whole, and named in its place.

        Where no file can be written, the shard has failed with that.
        """
        if result.error is not None:
            return result
        try:
            output = self._keep(assignment, result.output)
        except ArtifactNotWritten as error:
            return ShardResult(error=ShardError(error.code, error.message), provenance=result.provenance)
        return replace(result, output=output)

    def keep_new(self, files: Mapping[str, bytes]) -> None:
        """Write new files for later evaluations. Raises DataDirectoryUnusable, and ValueError for a name of none."""
        for name, content in files.items():
            self._kept.keep_bytes(name, content)

    def drop(self, assignment: Assignment, *, succeeded: bool) -> None:
        """Remove the file of an attempt that came to nothing, or those that a merge has made superfluous."""
        if not succeeded:
            drop_output(self._outputs, assignment.task_id, assignment.shard_id, assignment.attempt)
        elif assignment.request.stage == "merge":
            drop_outputs(self._outputs, assignment.task_id)

    def sweep(self, store: Store) -> None:
        """Remove what nothing names: files of a service that was killed."""
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
