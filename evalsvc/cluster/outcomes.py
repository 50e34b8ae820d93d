"""How calls on workers end, and why a worker died."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from distributed import Future
from distributed.scheduler import KilledWorker

from evalsvc.cluster.nanny import WorkerDrains
from evalsvc.errors import Cancelled

log = logging.getLogger(__name__)

CAUSE_WAIT = 0.5
"""Seconds that the news of a worker's death wait for their cause, which the nanny sends on another way."""

SILENT = "it was silent for longer than EVALSVC_WORKER_TTL, {ttl:g} s: stopped, cut off, or too busy to answer"
"""Cause of death of a worker without heartbeats."""

OutcomeKind: TypeAlias = Literal["result", "error", "cancelled", "worker_died", "lost", "refused"]


@dataclass(frozen=True)
class Outcome:
    """How a submitted call ended."""

    key: str
    kind: OutcomeKind
    """`error`: it raised, or could not be imported there; `cancelled`: it was asked to stop, and did; `lost`: the
    scheduler went away, or the worker before it had begun. `refused` never leaves the cluster: the worker drains."""
    value: Any = None
    """The result, or the message of the error."""
    cause: str = field(default="", compare=False)
    """Why the worker died, where that is known."""


def outcome_of(key: str, future: Future) -> Outcome:
    """What became of a call."""
    if future.status == "finished":
        try:
            return Outcome(key, "result", future.result(timeout=30))
        except CancelledError:
            return Outcome(key, "lost")
        except Exception:
            # The worker died while it handed over, or what it sent cannot be read. `lost` costs a shard nothing, and
            # the second would be tried for ever.
            log.exception("the result of %s did not arrive", key)
            return Outcome(key, "worker_died")
    if future.status == "error":
        error = future.exception(timeout=30)
        if isinstance(error, KilledWorker):
            return Outcome(key, "worker_died")
        if isinstance(error, Cancelled):
            return Outcome(key, "cancelled")
        if isinstance(error, WorkerDrains):
            return Outcome(key, "refused")
        return Outcome(key, "error", f"{type(error).__name__}: {error}")
    return Outcome(key, "lost")


class Deaths:
    """Brings the news of a worker's death together with their cause, which come on two ways, in any order."""

    def __init__(self, on_outcome: Callable[[Outcome], None]) -> None:
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        self._causes: dict[str, str] = {}
        self._waiting: dict[str, tuple[Outcome, bool]] = {}

    def report(self, address: str, outcome: Outcome, begun: bool) -> None:
        with self._lock:
            self._waiting[address] = (outcome, begun)
            known = address in self._causes
        if known:
            self._tell(address)
        else:
            timer = threading.Timer(CAUSE_WAIT, self._tell, (address,))
            timer.daemon = True
            timer.start()

    def explain(self, address: str, cause: str) -> None:
        with self._lock:
            self._causes.setdefault(address, cause)
        self._tell(address)

    def _tell(self, address: str) -> None:
        with self._lock:
            outcome, begun = self._waiting.pop(address, (None, False))
            cause = self._causes.get(address, "")
        if outcome is None:
            return
        if not begun and cause.startswith(SILENT.partition("{")[0]):
            # It went to a worker that was already stopped, which is no fault of the call.
            outcome = replace(outcome, kind="lost")
        self._on_outcome(replace(outcome, cause=cause))
