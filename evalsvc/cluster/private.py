"""Undocumented parts of Dask that evalsvc uses, such as those that refuse the pickles of a `worker`.

A new release may change them; `tests/cluster/test_private.py` shows how.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import distributed.protocol.core
import distributed.protocol.pickle
import msgpack
from distributed import Client, Nanny, Security, Worker
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.serialize import Serialized

_threads = threading.local()
"""Whether the current thread refuses pickles, as `refuses_pickles`."""


class ExitNanny(Nanny):  # type: ignore[misc]
    """A nanny with a method for the end of its worker process, which Dask does not report to plugins."""

    def on_worker_exit(self, exitcode: int) -> None:
        """Handle the end of the worker process, before Dask starts another. Does nothing by default."""

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.on_worker_exit(exitcode)
        super()._on_worker_exit_sync(exitcode)


def plugin_of(worker: Worker, name: str) -> WorkerPlugin:
    return worker.plugins[name]


def has_tasks(worker: Worker) -> bool:
    """Return whether a worker has tasks, including those whose result has not been released."""
    return bool(worker.state.tasks)


def has_work(worker: Worker) -> bool:
    state = worker.state
    return bool(state.executing_count or state.ready or state.constrained)


async def send_heartbeat(worker: Worker) -> None:
    await worker.heartbeat()


def connection(client: Client) -> object:
    """Return the connection of a client to its scheduler, which is another object after the client has reconnected."""
    return client.scheduler_comm


@dataclass(frozen=True)
class KnownWorker:
    name: str
    host: str
    last_seen: float
    """Time of the last heartbeat by the scheduler's clock."""
    is_draining: bool
    code: str
    """`installation.code_digest` of the worker; empty if the worker announces none."""


def known_workers(client: Client, timeout: float) -> Mapping[str, KnownWorker]:
    """Return all workers that the scheduler knows now, by address. `Client.scheduler_info` may be old."""
    identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=timeout)
    known = {}
    for address, info in identity["workers"].items():
        metrics = info["metrics"]  # a heartbeat in another form than that of Dask's workers announces no code
        said = metrics if isinstance(metrics, dict) else {}
        is_draining, code = bool(said.get("draining")), str(said.get("code", ""))
        known[address] = KnownWorker(str(info["name"]), str(info["host"]), info["last_seen"], is_draining, code)
    return known


class CallEnded(Exception):
    """A call ended without a result. Dask's own reason is a pickle and is not read."""

    def __init__(self, worker_died: bool) -> None:
        super().__init__("the worker died" if worker_died else "the worker could not begin the call, or end it")
        self.worker_died = worker_died


class DataClient(Client):  # type: ignore[misc]
    """A client that leaves everything packed that a worker sent, because Dask's own client runs pickles: in results and
    their types, in exceptions, and in warnings. `packed_bytes` reads a result."""

    connection_args: dict[str, Any]

    async def _start(self, *arguments: Any, **options: Any) -> Any:
        self.rpc.deserialize = False
        self.connection_args = {**self.connection_args, "deserialize": False}
        return await super()._start(*arguments, **options)

    def _handle_key_in_memory(self, key: Any = None, **_of_its_result: Any) -> None:
        super()._handle_key_in_memory(key=key)

    def _handle_task_erred(self, key: Any = None, exception: Any = None, traceback: Any = None) -> None:
        if (state := self.futures.get(key)) is not None:
            # The scheduler's own exceptions arrive as bytes, a worker's as `Serialized`.
            state.set_error(CallEnded(isinstance(exception, bytes) and b"KilledWorker" in exception), None)

    async def _handle_event(self, topic: str, event: Any) -> None:
        if topic not in Client._default_event_handlers:  # printing and warning by request of a worker
            await super()._handle_event(topic, event)


class RemoteClient(DataClient):
    """A `DataClient` of a scheduler in another process, in whose own thread nothing of Dask loads a pickle."""

    async def _start(self, *arguments: Any, **options: Any) -> Any:
        _guard_pickles()
        _threads.refuses_pickles = True
        return await super()._start(*arguments, **options)


def _guard_pickles() -> None:
    """Make Dask refuse pickles in threads that ask for it. All of Dask's loading goes through these two names."""
    plain, module = distributed.protocol.pickle.pickle, distributed.protocol.pickle
    if isinstance(plain, SimpleNamespace):
        return

    def load(*arguments: Any, **options: Any) -> Any:
        if getattr(_threads, "refuses_pickles", False):
            raise TypeError("a pickle from another process is refused")
        return plain.loads(*arguments, **options)

    def load_in_message(*arguments: Any, **options: Any) -> Any:
        # An exception would end the connection, and with it the calls of other workers.
        return None if getattr(_threads, "refuses_pickles", False) else module.loads(*arguments, **options)

    module.pickle = SimpleNamespace(**{**vars(plain), "loads": load})
    distributed.protocol.core.pickle = SimpleNamespace(dumps=module.dumps, loads=load_in_message)


def packed_bytes(value: object) -> bytes:
    """Return the bytes that a call on a worker returned. Raises TypeError for anything else, without loading it."""
    if isinstance(value, Serialized):
        if value.header.get("serializer") != "msgpack" or any(value.header.get("compression") or ()):
            raise TypeError("the worker did not return plain bytes")
        value = msgpack.unpackb(b"".join(value.frames))
    if not isinstance(value, bytes):
        raise TypeError(f"the worker returned a {type(value).__name__}, not bytes")
    return value


def call_on(client: Client, worker: str, function: Callable[..., object], nanny: bool = False) -> None:
    """Call a function in a worker process or its nanny without reading its result; `Client.run` would load it."""
    pickled = {"function": function, "args": (), "kwargs": {}}
    message = {"op": "run", "wait": True} | {
        name: distributed.protocol.pickle.dumps(value) for name, value in pickled.items()
    }
    client.sync(client.scheduler.broadcast, msg=message, workers=[worker], nanny=nanny, on_error="ignore")


def remote_client(address: str, security: Security, timeout: float) -> Client:
    return RemoteClient(address, security=security, timeout=timeout, set_as_default=False, deserializers=["msgpack"])


def own_client(cluster: SpecCluster) -> Client:
    """Return a client of a cluster whose scheduler is in this process, by the scheduler's second address."""
    [_for_workers, for_client] = cluster.scheduler.listeners
    return DataClient(for_client.contact_address, loop=cluster.loop, set_as_default=False, deserializers=["msgpack"])
