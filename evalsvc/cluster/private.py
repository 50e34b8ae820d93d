"""Undocumented parts of Dask that evalsvc uses. A new release may change them; `tests/cluster/test_private.py` shows
how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed import Client, Nanny, Worker
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin


class ExitNanny(Nanny):  # type: ignore[misc]
    """A nanny with a method for the end of its worker process, which Dask does not report to plugins."""

    def on_worker_exit(self, exitcode: int) -> None:
        """Handle the end of the worker process, before Dask starts another. Does nothing by default."""

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.on_worker_exit(exitcode)
        super()._on_worker_exit_sync(exitcode)


def plugin_of(worker: Worker, name: str) -> WorkerPlugin:
    """Return the plugin with this name that a worker was started with."""
    return worker.plugins[name]


def has_tasks(worker: Worker) -> bool:
    """Return whether a worker has tasks, including those whose result has not been released."""
    return bool(worker.state.tasks)


def has_work(worker: Worker) -> bool:
    """Return whether a worker executes a task, or is about to."""
    state = worker.state
    return bool(state.executing_count or state.ready or state.constrained)


async def send_heartbeat(worker: Worker) -> None:
    """Send a worker's metrics to the scheduler now."""
    await worker.heartbeat()


def connection(client: Client) -> object:
    """Return the connection of a client to its scheduler, which is another object after the client has reconnected."""
    return client.scheduler_comm


@dataclass(frozen=True)
class KnownWorker:
    """A worker in the scheduler's list."""

    name: str
    host: str
    last_seen: float
    """Time of the last heartbeat by the scheduler's clock."""
    is_draining: bool


def known_workers(client: Client, timeout: float) -> Mapping[str, KnownWorker]:
    """Return all workers that the scheduler knows, by address.

    `Client.scheduler_info` would return the client's last information, which may be old.
    """
    identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=timeout)
    return {
        address: KnownWorker(
            str(info["name"]), str(info["host"]), info["last_seen"], bool(info["metrics"].get("draining"))
        )
        for address, info in identity["workers"].items()
    }


def own_client(cluster: SpecCluster) -> Client:
    """Return a client of a cluster whose scheduler is in this process, by the scheduler's second address."""
    [_for_workers, for_client] = cluster.scheduler.listeners
    return Client(for_client.contact_address, loop=cluster.loop, set_as_default=False)
