"""What Dask does not document and this package relies on. A release may move any of it; `tests/cluster/test_private.py`
says what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed import Client, Nanny, Worker
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin


class ExitNanny(Nanny):  # type: ignore[misc]
    """A nanny with a method for the end of its worker process, of which Dask tells no plugin."""

    def on_worker_exit(self, exitcode: int) -> None:
        """Called when the worker process has ended, before Dask starts another one. Does nothing by itself."""

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.on_worker_exit(exitcode)
        super()._on_worker_exit_sync(exitcode)


def plugin_of(worker: Worker, name: str) -> WorkerPlugin:
    """The plugin of this name that a worker was started with."""
    return worker.plugins[name]


def has_tasks(worker: Worker) -> bool:
    """Whether a worker has tasks, those included whose result nobody has released yet."""
    return bool(worker.state.tasks)


def has_work(worker: Worker) -> bool:
    """Whether a worker executes a task, or is about to."""
    state = worker.state
    return bool(state.executing_count or state.ready or state.constrained)


async def send_heartbeat(worker: Worker) -> None:
    """Send the scheduler a worker's metrics now."""
    await worker.heartbeat()


def connection(client: Client) -> object:
    """The connection of a client to its scheduler: another object after the client has connected to a new one."""
    return client.scheduler_comm


@dataclass(frozen=True)
class KnownWorker:
    """A worker as its scheduler knows it."""

    name: str
    host: str
    last_seen: float
    """Time of the last heartbeat by the scheduler's clock."""
    is_draining: bool


def known_workers(client: Client, timeout: float) -> Mapping[str, KnownWorker]:
    """All workers that the scheduler knows, by address.

    `Client.scheduler_info` gives what the client has heard last, which may be old.
    """
    found = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=timeout)
    return {
        address: KnownWorker(str(one["name"]), str(one["host"]), one["last_seen"], bool(one["metrics"].get("draining")))
        for address, one in found["workers"].items()
    }


def own_client(cluster: SpecCluster) -> Client:
    """A client of a cluster whose scheduler is in this process, on the second address on which that listens."""
    [_for_workers, for_client] = cluster.scheduler.listeners
    return Client(for_client.contact_address, loop=cluster.loop, set_as_default=False)
