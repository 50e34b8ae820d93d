"""A cluster whose workers are threads of this process, and the task `steps` on it: no Dask, checkpoint or torch. It
keeps what the coordinator relies on: one call a worker, progress from the beginning of a call, one outcome of every
call, which comes on another thread, and nothing of a call that was given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from steps_task import Steps, StepsOutput, StepsShard, StepsWork

from evalsvc.cluster.cluster import Cluster, Member, Outcome, OutcomeKind
from evalsvc.config import Settings
from evalsvc.errors import Cancelled
from evalsvc.files.outputs import OutputsLost, read_output
from evalsvc.messages import ShardError, ShardRequest, ShardResult, pack_result
from evalsvc.tasks.stages import run_stage
from evalsvc.tasks.task import Context

Run = Callable[[Any, "Call"], Any]


class Died(BaseException):
    """The worker process is gone, in the midst of a call; no error of the call, so nothing catches it."""


@dataclass
class Call:
    key: str
    worker: str
    on_progress: Callable[[str, int], None]
    outputs: Path
    cancelled: threading.Event = field(default_factory=threading.Event)
    dead: threading.Event = field(default_factory=threading.Event)

    def report(self, done: int) -> None:
        if self.dead.is_set():
            raise Died
        self.on_progress(self.key, done)
        if self.cancelled.is_set():
            raise Cancelled("the evaluation was cancelled")

    def pause(self, seconds: float) -> None:
        if self.dead.wait(seconds):
            raise Died


class InProcessCluster(Cluster):
    def __init__(self, settings: Settings, on_progress: Any, on_outcome: Any, run: Run) -> None:
        self._run = run
        self._report_progress, self._report_outcome = on_progress, on_outcome
        self._addresses = [f"inproc://{index}" for index, _ in enumerate(settings.devices.split(","))]
        self._outputs = settings.outputs_path
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}
        self._threads: list[threading.Thread] = []
        self._is_up = False
        self.kills_in_vain = 0
        """How many kills have no effect, as of a process that nobody knows yet."""

    def start(self) -> None:
        self._is_up = True

    def close(self) -> None:
        """End all workers, as a scheduler that goes takes them along; nothing of their calls is heard again."""
        self._is_up = False
        with self._lock:
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.dead.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "what runs on a worker pauses by `Call.pause`"

    def connected(self) -> bool:
        return self._is_up

    def disconnect(self) -> None:
        self._is_up = False

    def workers(self) -> list[str]:
        return list(self._addresses) if self._is_up else []

    def slots(self) -> int:
        return len(self.workers())

    def free(self) -> list[str]:
        with self._lock:
            busy = {call.worker for call in self._calls.values()}
        return [address for address in self.workers() if address not in busy]

    def members(self) -> list[Member]:
        return [Member(address, f"cpu#{index}", "127.0.0.1", "") for index, address in enumerate(self.workers())]

    def place(self, key: str) -> str | None:
        call = self._calls.get(key)
        return call and call.worker

    def submit(self, key: str, target: str, request: object, worker: str | None = None) -> None:
        assert worker is not None
        call = Call(key, worker, self._report_progress, self._outputs)
        with self._lock:
            assert worker not in {other.worker for other in self._calls.values()}, "a worker does one call at a time"
            self._calls[key] = call
        thread = threading.Thread(target=self._do, args=(call, request), name=key, daemon=True)
        self._threads.append(thread)
        thread.start()

    def release(self, key: str) -> None:
        with self._lock:
            self._calls.pop(key, None)

    def release_futures(self) -> None:
        pass

    def cancel(self, key: str) -> None:
        self._calls[key].cancelled.set()

    def kill(self, key: str) -> None:
        if self.kills_in_vain:
            self.kills_in_vain -= 1
        elif call := self._calls.get(key):
            call.dead.set()

    def _do(self, call: Call, request: Any) -> None:
        kind: OutcomeKind = "result"
        value: Any = None
        cause = ""
        try:
            call.report(0)
            value = self._run(request, call)
            if isinstance(value, ShardResult):
                value = pack_result(request.stage, value)
        except Cancelled:
            kind = "cancelled"
        except Died as death:
            kind, cause = "worker_died", str(death)
        except Exception as error:
            kind, value = "error", f"{type(error).__name__}: {error}"
        if call.key in self._calls and self._is_up:
            self._report_outcome(Outcome(call.key, kind, value, cause))


def with_run(run: Run) -> Any:
    return lambda settings, on_progress, on_outcome: InProcessCluster(settings, on_progress, on_outcome, run)


def run_steps(request: ShardRequest, call: Call) -> ShardResult:
    work = StepsOfACall(Steps(name=request.task.name, **request.task.parameters), call)
    base = request.base and SimpleNamespace(checkpoint=request.base)
    context: Any = SimpleNamespace(checkpoint=request.checkpoint, base=base)
    try:
        return ShardResult(run_stage(work, request, context, partial(read_output, call.outputs)))
    except OutputsLost as error:
        return ShardResult(lost=error.files)
    except Cancelled as error:
        return ShardResult(error=ShardError(error.code, error.message))


class StepsOfACall(StepsWork):
    def __init__(self, task: Steps, call: Call) -> None:
        super().__init__(task)
        self.call = call

    def run(self, context: Context, shard: StepsShard) -> StepsOutput:
        for step in range(self.task.steps):
            with Path(self.task.log).open("a") as stream:
                stream.write(f"{shard.index} {step} {self.call.worker}\n")
            self.call.pause(self.task.seconds)
            if shard.index == self.task.poison:
                raise Died("it was poisoned")
            if not self.task.deaf:
                self.call.report(step + 1)
        return StepsOutput(self.task.steps, bytes([shard.index]) * self.task.size)
