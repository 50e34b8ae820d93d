"""The queue of a service: takes shards out of the database, and stores the outcomes of their attempts. No threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy.orm import Session

from evalsvc.cluster.outcomes import Outcome
from evalsvc.config import Settings
from evalsvc.errors import ArtifactNotWritten, Cancelled, DatabaseInUse, DeadlineExceeded, InternalError, WorkerDied
from evalsvc.files.artifacts import naming
from evalsvc.messages import ShardError, ShardResult
from evalsvc.service.in_flight import InFlight
from evalsvc.service.shard_files import ShardFiles
from evalsvc.store.queue import attempts
from evalsvc.store.queue.attempts import Assignment
from evalsvc.store.queue.order import WorkerState
from evalsvc.store.session import Store, is_outage

log = logging.getLogger(__name__)


class ShardQueue:
    def __init__(self, store: Store, settings: Settings, files: ShardFiles) -> None:
        self._store = store
        self._settings = settings
        self._files = files
        self.may_have_orphans = threading.Event()
        """Set if shards may be running in the database and on no worker."""
        self.may_have_orphans.set()

    def take(self, worker_state: WorkerState) -> Assignment | None:
        """Dispatch the next shard; return None if no shard waits."""
        try:
            with self._store.transaction() as session:
                return attempts.take(session, self._settings.data_path, worker_state)
        except Exception:
            # The database may have committed although its answer was lost. Then no worker has the running shard.
            self.may_have_orphans.set()
            raise

    def is_empty(self) -> bool:
        with self._store.reading() as session:
            return not attempts.is_queued(session)

    def unwanted(self, shard_ids: Collection[int]) -> set[int]:
        """Return the ids of running shards that are to be stopped."""
        if not shard_ids:
            return set()
        with self._store.reading() as session:
            return attempts.unwanted(session, shard_ids)

    def requeue_orphans(self, held: Mapping[int, int]) -> int:
        """Requeue shards that run in the database and are not held here: of a killed service, or of a lost answer.

        `held` has the attempts on workers by shard id.
        """
        if not self.may_have_orphans.is_set():
            return 0
        with self._store.transaction() as session:
            lost = attempts.requeue_running(session, held)
        self.may_have_orphans.clear()
        if lost:
            log.warning("%d shards were orphaned and are queued again", lost)
        return lost

    def settle(self, item: InFlight, outcome: Outcome) -> bool:
        """Store the outcome of an attempt; return whether the attempt succeeded, and was the current one.

        Raise an error that may pass, such as an outage of the database, after which the outcome can be stored.
        """
        if isinstance(outcome.value, ShardResult) and outcome.value.lost:
            item.lost, outcome = list(outcome.value.lost), Outcome(outcome.key, "lost")
            log.warning("%s cannot read outputs of other shards, which are rerun: %s", outcome.key, item.lost)
        try:
            with naming:
                if outcome.kind == "result":
                    outcome = replace(outcome, value=self._files.keep(item.assignment, outcome.value))
                with self._store.transaction() as session:
                    stored = self._store_outcome(session, item, outcome)
        except Exception as error:
            if may_pass(error):
                raise
            # A plug-in's result cannot be stored: its shard fails, and the queue goes on.
            log.exception("the result of %s cannot be stored", outcome.key)
            outcome = Outcome(outcome.key, "error", f"its result cannot be stored ({type(error).__name__}: {error})")
            with self._store.transaction() as session:
                stored = self._store_outcome(session, item, outcome)
        log.info("%s ended: %s%s", outcome.key, outcome.kind, "" if stored else ", too late")
        failure = outcome.value.error if outcome.kind == "result" else None
        if stored and failure is not None:
            level = logging.INFO if failure.code == Cancelled.code else logging.WARNING
            log.log(level, "%s failed: %s", outcome.key, failure.message)
        succeeded = stored and outcome.kind == "result" and failure is None
        self._files.drop(item.assignment, succeeded=succeeded)
        return succeeded

    def _store_outcome(self, session: Session, item: InFlight, outcome: Outcome) -> bool:
        """Return false if the attempt is not the current one any more."""
        assignment, limit = item.assignment, self._settings.max_attempts
        if outcome.kind == "result":
            return attempts.finish(session, assignment, outcome.value, limit)
        if outcome.kind == "error":
            error = ShardError(InternalError.code, f"{outcome.value}; the worker's log has the details")
            return attempts.finish(session, assignment, ShardResult(error=error))
        if item.lost:
            lost = item.lost[0].path(self._settings.outputs_path)
            error = ShardError(
                ArtifactNotWritten.code,
                f"the output of a shard was written to {lost} and was missing, or changed, when it was read, {limit} "
                "times; check the disk, then retry the evaluation",
            )
            return attempts.run_again(session, assignment, item.lost, error, limit)
        if outcome.kind == "cancelled":
            return attempts.give_up(session, assignment, "cancelled", None, limit)
        if item.cancelled_at is not None or outcome.kind == "lost":
            return attempts.give_up(session, assignment, "lost", None, limit)
        if item.overran and assignment.request.stage == "plan":
            error = ShardError(
                DeadlineExceeded.code,
                f"planning was stopped after {self._settings.plan_deadline:g} s without progress; look for a template, "
                "a tokenizer or data of this task that takes as long, or raise EVALSVC_SHARD_DEADLINE of the service, "
                "then retry the evaluation",
            )
            # The next attempt would plan the same, for as long.
            return attempts.give_up(session, assignment, "deadline_exceeded", error, 1)
        if item.overran:
            error = ShardError(
                DeadlineExceeded.code,
                f"the shard ran longer than {self._settings.shard_deadline:g} s, {limit} times; raise "
                "EVALSVC_SHARD_DEADLINE or give the task more shards, then retry the evaluation",
            )
            return attempts.give_up(session, assignment, "deadline_exceeded", error, limit)
        how = f"the last time, {outcome.cause}" if outcome.cause else "killed, out of memory, or crashed"
        error = ShardError(
            WorkerDied.code,
            f"the worker process died while it ran this shard, {limit} times ({how}); check the machine's log, lower "
            "EVALSVC_BATCH_TOKENS, then retry the evaluation",
        )
        return attempts.give_up(session, assignment, "worker_died", error, limit)


def may_pass(error: Exception) -> bool:
    return is_outage(error) or isinstance(error, DatabaseInUse)
