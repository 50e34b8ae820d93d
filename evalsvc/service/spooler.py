"""Keeping checkpoints of a `submitter` until they are evaluated: copies of the files that were checked, made in the
background and released in time."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import aliased

from evalsvc.checkpoints.copies import copy_files, releasing, spooled
from evalsvc.checkpoints.opening import checkpoint_rule, opened
from evalsvc.checkpoints.reference import CheckpointRef, Identity, verify
from evalsvc.checkpoints.remote.fetch import fetch_posted
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, SourceUnreachable, os_reason
from evalsvc.messages import ShardError
from evalsvc.store.lookup import hold_all
from evalsvc.store.queue.stages import fail_checkpoint
from evalsvc.store.runs.base import base_ids
from evalsvc.store.session import Store
from evalsvc.store.tables import Checkpoint, Evaluation, checkpoint_parents

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 5.0, 30.0)
"""Seconds between attempts to fetch from a store that does not answer."""


STORE_AGAIN_SECONDS = 1.0

SWEEP_SECONDS = 60.0
"""Seconds between two searches for copies that no checkpoint has; a post commits well within them."""


class _Closing(Exception):
    """The service stops while a checkpoint is fetched."""


class Spooler:
    """Copies checkpoints that wait to be spooled, one at a time, and deletes copies that are no longer needed."""

    def __init__(self, store: Store, settings: Settings, wake: Callable[[], None]) -> None:
        self._store = store
        self._settings = settings
        self._data_path = settings.data_path
        self._closing = threading.Event()
        self._wake = wake
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._begun: set[int] = set()
        self._unnamed: set[int] = set()
        self._sweep_at = 0.0

    def poll(self, in_use: Collection[int] = ()) -> None:
        """Begin requested copies, including those that a restart interrupted, and release finished ones. `in_use` are
        checkpoints of running shards: a cancelled evaluation may be retried before its shard has stopped."""
        with self._store.reading() as session:
            for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.spool_state == "copying")):
                if checkpoint.id not in self._begun:
                    self._begun.add(checkpoint.id)
                    self._copier.submit(self._copy, checkpoint)
        self._release(in_use)
        self._sweep()

    def close(self) -> None:
        """Begin no further copy. A running copy is not waited for, and begins again after a restart."""
        self._closing.set()
        self._copier.shutdown(wait=False, cancel_futures=True)

    def _copy(self, checkpoint: Checkpoint) -> None:
        copy = spooled(self._data_path, checkpoint.id)
        error: ShardError | None = None
        try:
            shutil.rmtree(copy.folder, ignore_errors=True)  # existing files may be incomplete
            copy.fill(partial(self._copy_file if checkpoint.etag is None else self._fetch, checkpoint))
        except _Closing:
            return  # the copy stays requested, and begins again after a restart
        except EvalsvcError as failure:
            error = ShardError(failure.code, failure.message)
        except OSError as failure:
            reason = os_reason(failure)
            message = f"{checkpoint.path} could not be copied to the spool: {reason}; post it again"
            error = ShardError("checkpoint_gone", message)
        if error is not None:
            copy.remove()
        while not self._store_state(checkpoint, error):
            if self._closing.wait(STORE_AGAIN_SECONDS):
                return
        self._begun.discard(checkpoint.id)
        self._wake()

    def _store_state(self, checkpoint: Checkpoint, error: ShardError | None) -> bool:
        try:
            with self._store.transaction() as session:
                state = "ready" if error is None else "failed"
                stated = update(Checkpoint).where(Checkpoint.id == checkpoint.id).values(spool_state=state)
                if session.execute(stated).rowcount == 0:  # type: ignore[attr-defined] # its run was deleted
                    spooled(self._data_path, checkpoint.id).remove()
                if error is not None:
                    fail_checkpoint(session, checkpoint.id, error)
        except Exception as problem:  # nobody watches this thread, and the checkpoint would wait forever
            message = "the state of the copy of checkpoint %s could not be stored, retrying: %s"
            log.warning(message, checkpoint.id, problem)
            return False
        return True

    def _copy_file(self, checkpoint: Checkpoint, folder: Path) -> None:
        source, target = checkpoint.path, folder / Path(checkpoint.path).name
        reference = CheckpointRef(
            path=source,
            identity=Identity(checkpoint.size, checkpoint.mtime_ns),
            label=f"checkpoint {checkpoint.id}",
            rule=checkpoint_rule(self._settings),
        )
        with opened(reference) as pinned:
            copy_files(Path(pinned.path), target)
        verify(replace(reference, path=str(target), label=f"the spooled copy of {source}"))
        verify(reference)

    def _fetch(self, checkpoint: Checkpoint, folder: Path) -> None:
        reference = CheckpointRef(
            path=checkpoint.path,
            identity=Identity(checkpoint.size, checkpoint.mtime_ns, checkpoint.etag),
            sha256=checkpoint.sha256,
            label=f"checkpoint {checkpoint.id}",
        )
        target = folder / Path(checkpoint.path).name

        def stop_if_closing(_done: int) -> None:
            if self._closing.is_set():
                raise _Closing

        for delay in (*RETRY_SECONDS, None):
            try:
                fetch_posted(reference, target, self._settings, stop_if_closing)
                return
            except SourceUnreachable as error:
                if delay is None:
                    raise
                log.warning("%s; retrying in %s s", error, delay)
                if self._closing.wait(delay):
                    raise

    def _release(self, in_use: Collection[int]) -> None:
        # Keep checkpoints of failed evaluations, which may be retried, and checkpoints without evaluations.
        pending = select(Evaluation.checkpoint_id).where(Evaluation.state.not_in(("succeeded", "cancelled")))
        begun = select(Evaluation.checkpoint_id)
        # Keep a checkpoint as long as virtual checkpoints that are computed from it are in use.
        child = aliased(Checkpoint)
        needed = (
            select(checkpoint_parents.c.parent_id)
            .join(child, child.id == checkpoint_parents.c.checkpoint_id)
            .where(
                (child.replaced_at.is_(None) & (child.id.in_(pending) | child.id.not_in(begun))) | child.id.in_(in_use)
            )
        )
        done = (
            select(Checkpoint.id)
            .where(Checkpoint.spool_state == "ready", Checkpoint.id.in_(begun))
            .where((Checkpoint.id.not_in(pending) & Checkpoint.id.not_in(needed)) | Checkpoint.replaced_at.is_not(None))
            .where(Checkpoint.id.not_in(in_use))
        )
        with self._store.reading() as session:
            # Keep bases, because new checkpoints may be compared with them.
            unneeded = select(Checkpoint).where(Checkpoint.id.in_(done), Checkpoint.id.not_in(base_ids(session)))
            checkpoints = session.scalars(unneeded).all()
        for checkpoint in checkpoints:
            # A request that sends the file again must not have it removed.
            with releasing:
                with self._store.transaction() as session:
                    # Check again under the lock, because a cancelled evaluation may have been retried.
                    hold_all(session, Evaluation.checkpoint_id == checkpoint.id)
                    if session.scalar(done.where(Checkpoint.id == checkpoint.id)) is None:
                        continue
                    released = update(Checkpoint).where(Checkpoint.id == checkpoint.id)
                    session.execute(released.values(spool_state="released"))
                spooled(self._data_path, checkpoint.id).remove()
            log.info("spooled copy of checkpoint %s released", checkpoint.id)

    def _sweep(self) -> None:
        """Remove copies that no checkpoint has: a post was rolled back, or the database or the service died meanwhile.
        A post links its copy before it commits, so only a copy that two searches find unnamed is removed. An id above
        all checkpoints may be given again at any moment (SQLite does), or the database is a new one next to the files
        of another: such a copy stays, and is replaced or found when there are more checkpoints."""
        if time.monotonic() < self._sweep_at:
            return
        copies = {int(path.stem) for path in (self._data_path / "spool").glob("*") if path.stem.isdecimal()}
        kept = Checkpoint.id.in_(copies), Checkpoint.spool_state.in_(("copying", "ready"))
        with self._store.reading() as session:
            newest = session.scalar(select(func.max(Checkpoint.id))) or 0
            unnamed = copies - set(session.scalars(select(Checkpoint.id).where(*kept)))
        for checkpoint in (checkpoint for checkpoint in unnamed & self._unnamed if checkpoint <= newest):
            spooled(self._data_path, checkpoint).remove()
            log.info("spooled copy %s removed: no checkpoint has it", checkpoint)
        self._unnamed = unnamed
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
