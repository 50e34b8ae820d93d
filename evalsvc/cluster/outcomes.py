"""Outcomes of calls on workers, and causes of workers' deaths."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from distributed import Future

from evalsvc.cluster.nanny import REPLY
from evalsvc.cluster.private import CallEnded, packed_bytes

log = logging.getLogger(__name__)

CAUSE_WAIT = 0.5
"""Seconds to wait for the cause of a worker's death, which the nanny sends separately."""

CAUSES, CAUSE_CHARACTERS = 10_000, 500
"""Limits of the causes that are kept, and of each: any worker can send causes, for any address."""

SILENT = "it sent no heartbeat for EVALSVC_WORKER_TTL, {ttl:g} s: stopped, disconnected, or too busy"
"""Cause of death of a worker without heartbeats."""

OutcomeKind: TypeAlias = Literal["result", "error", "cancelled", "worker_died", "lost", "refused"]


@dataclass(frozen=True)
class Outcome:
    """The end of a submitted call."""

    key: str
    kind: OutcomeKind
    """Kind of end. `error`: the call raised, or could not be imported; `cancelled`: the call stopped on request;
    `lost`: the scheduler went away, or the worker did before the call began; `refused`, never seen outside the cluster:
    the worker drains."""
    value: Any = None
    """Bytes that the call returned, or message of the error."""
    cause: str = field(default="", compare=False)
    """Cause of the worker's death; empty if it is unknown."""


def outcome_of(key: str, future: Future) -> Outcome:
    """Return the outcome of a call."""
    if future.status == "finished":
        try:
            reply = REPLY.unpack(packed_bytes(future.result(timeout=30)))
        except CancelledError:
            return Outcome(key, "lost")
        except Exception:
            # The worker died while it sent the result, or the result cannot be read. `lost` would not count as an
            # attempt, so an unreadable result would be tried forever.
            log.exception("the result of %s did not arrive", key)
            return Outcome(key, "worker_died")
        return Outcome(key, reply.kind, {"result": reply.content, "error": reply.message}.get(reply.kind))
    if future.status == "error":
        error = future.exception(timeout=30)
        if isinstance(error, CallEnded) and error.worker_died:
            return Outcome(key, "worker_died")
        return Outcome(key, "error", f"{error}; check that it has the version of evalsvc that the service has")
    return Outcome(key, "lost")


class Deaths:
    """Joins the news of a worker's death with its cause, which arrive separately and in any order."""

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
            self._causes.setdefault(address, cause[:CAUSE_CHARACTERS])
            if len(self._causes) > CAUSES:
                del self._causes[next(iter(self._causes))]
        self._tell(address)

    def _tell(self, address: str) -> None:
        with self._lock:
            outcome, begun = self._waiting.pop(address, (None, False))
            cause = self._causes.get(address, "")
        if outcome is None:
            return
        if not begun and cause.startswith(SILENT.partition("{")[0]):
            # The call went to a worker that was already stopped, so the attempt does not count.
            outcome = replace(outcome, kind="lost")
        self._on_outcome(replace(outcome, cause=cause))
