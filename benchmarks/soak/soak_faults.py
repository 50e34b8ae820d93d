"""The faults, one function and one line of the table each."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import psutil
from soak_database import PostgresqlDatabase, SqliteDatabase
from soak_trainer import Trainer
from soak_world import World

Thing = TypeVar("Thing")

TTL = 5.0
"""EVALSVC_WORKER_TTL of a fault run; Dask looks every so many seconds, and may so notice after twice as many."""

LOOK = 0.1
"""Seconds for which workers are watched to see which of them is at work."""

Inject = Callable[[World, Trainer, float], str | None]
"""Brings a fault about. Says what was hit, or None where there was nothing to hit."""


@dataclass(frozen=True)
class Fault:
    inject: Inject
    repeats: Callable[[World], int]
    """How many shards it may make run once more, at most."""
    failed_attempts: int = 0
    """How many shards may be charged with it, at most."""


def kill_worker(world: World, trainer: Trainer, draw: float) -> str | None:
    return _kill(_busy_one_of(world.workers(), draw), "worker process")


def stop_worker_briefly(world: World, trainer: Trainer, draw: float) -> str | None:
    return _stop_worker(world, draw, TTL * (0.1 + 0.3 * draw))


def stop_worker_long(world: World, trainer: Trainer, draw: float) -> str | None:
    return _stop_worker(world, draw, TTL * (2.5 + draw))


def kill_supervisor(world: World, trainer: Trainer, draw: float) -> str | None:
    """Its worker process ends with it."""
    supervisor = _one_of(world.supervisors, draw)
    assert supervisor is not None
    supervisor.kill()
    return supervisor.name


def drain_workers(world: World, trainer: Trainer, draw: float) -> str | None:
    """As a batch system does before it takes a machine away."""
    supervisor = _one_of(world.supervisors, draw)
    assert supervisor is not None
    supervisor.drain()
    return supervisor.name


def kill_service(world: World, trainer: Trainer, draw: float) -> str:
    world.service.kill()
    return "the service"


def kill_scheduler(world: World, trainer: Trainer, draw: float) -> str:
    assert world.scheduler is not None
    world.scheduler.kill()
    return "the scheduler"


def stop_database(world: World, trainer: Trainer, draw: float) -> str | None:
    assert isinstance(world.database, PostgresqlDatabase)
    seconds = 1 + 4 * draw
    if not world.database.stop():
        return None
    world.later(seconds, world.database.start)
    return f"for {seconds:.1f} s"


def kill_database(world: World, trainer: Trainer, draw: float) -> str | None:
    assert isinstance(world.database, PostgresqlDatabase)
    seconds = 2 * draw
    if not world.database.kill():
        return None
    world.later(seconds, world.database.start)
    return f"for {seconds:.1f} s"


def lock_database(world: World, trainer: Trainer, draw: float) -> str | None:
    """Both sides of the 10 s that SQLite waits for a lock."""
    assert isinstance(world.database, SqliteDatabase)
    seconds = 1 + 12 * draw
    if not world.database.lock():
        return None
    world.later(seconds, world.database.unlock)
    return f"for {seconds:.1f} s"


def post_again(world: World, trainer: Trainer, draw: float) -> str | None:
    return trainer.post_again(draw)


def cancel_and_retry(world: World, trainer: Trainer, draw: float) -> str | None:
    return trainer.cancel_and_retry(draw)


def replace_checkpoint(world: World, trainer: Trainer, draw: float) -> str | None:
    return trainer.replace(draw)


def _one(world: World) -> int:
    return 1


def _none(world: World) -> int:
    return 0


def _all_running(world: World) -> int:
    return world.workers_count


FAULTS: dict[str, Fault] = {
    "kill-worker": Fault(kill_worker, _one, failed_attempts=1),
    "stop-worker-briefly": Fault(stop_worker_briefly, _none),
    "stop-worker-long": Fault(stop_worker_long, _one, failed_attempts=1),
    "kill-supervisor": Fault(kill_supervisor, _one, failed_attempts=1),
    "drain-workers": Fault(drain_workers, _none),
    "kill-service": Fault(kill_service, _all_running),
    "kill-scheduler": Fault(kill_scheduler, _all_running),
    "stop-database": Fault(stop_database, _one),
    "kill-database": Fault(kill_database, _one),
    "lock-database": Fault(lock_database, _none),
    "post-again": Fault(post_again, _none),
    "cancel-and-retry": Fault(cancel_and_retry, _all_running),
    "replace-checkpoint": Fault(replace_checkpoint, _all_running),
}


def possible(world: World) -> list[str]:
    """The kinds that can happen in a world."""
    always = ["kill-worker", "stop-worker-briefly", "stop-worker-long", "kill-service"]
    machines = ["kill-supervisor", "drain-workers", "kill-scheduler"]
    clients = ["post-again", "cancel-and-retry", "replace-checkpoint"]
    return [*always, *(machines if world.external else []), *world.database.faults, *clients]


def _stop_worker(world: World, draw: float, seconds: float) -> str | None:
    worker = _busy_one_of(world.workers(), draw)
    if worker is None:
        return None
    try:
        world.stop_worker(worker, seconds)
    except psutil.Error:
        return None
    return f"worker process {worker.pid} for {seconds:.1f} s"


def _kill(process: psutil.Process | None, what: str) -> str | None:
    if process is None:
        return None
    with suppress(psutil.Error):
        process.send_signal(signal.SIGKILL)
    return f"{what} {process.pid}"


def _busy_one_of(workers: list[psutil.Process], draw: float) -> psutil.Process | None:
    """Mostly the one that is at work; sometimes whichever."""
    before = [_cpu_seconds(worker) for worker in workers]
    time.sleep(LOOK)
    used = [_cpu_seconds(worker) - start for worker, start in zip(workers, before, strict=True)]
    if workers and draw < 0.8:
        return workers[used.index(max(used))]
    return _one_of(workers, draw)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _one_of(things: list[Thing], draw: float) -> Thing | None:
    return things[int(draw * len(things))] if things else None
