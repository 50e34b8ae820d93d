"""What of Dask is used and not documented is where it was; a release that moved it fails here, by name."""

import ast
import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Event, Nanny, Scheduler, Security, Worker, get_worker
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import to_serialize
from distributed.protocol.pickle import dumps
from distributed.protocol.serialize import ToPickle

from evalsvc.cluster import private
from evalsvc.cluster.settings import NO_DASHBOARD


def test_a_nanny_calls_what_is_overridden_when_its_worker_process_ends() -> None:
    assert list(inspect.signature(Nanny._on_worker_exit_sync).parameters) == ["self", "exitcode"]
    assert "on_exit=self._on_worker_exit_sync" in inspect.getsource(Nanny.instantiate)


def test_a_worker_says_what_it_has_to_do_and_sends_a_heartbeat() -> None:
    plugin = WorkerPlugin()
    plugin.name = "ours"

    async def look() -> None:
        async with (
            Scheduler(protocol="inproc://", **NO_DASHBOARD) as scheduler,
            Worker(scheduler.address, nthreads=1, plugins=(plugin,), **NO_DASHBOARD) as worker,
            Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
        ):
            assert private.plugin_of(worker, "ours") is plugin
            assert not private.has_tasks(worker)
            assert not private.has_work(worker)
            waits = client.submit(lambda: Event("go").wait(), key="waits", pure=False)
            while not private.has_work(worker):
                await asyncio.sleep(0.01)
            await Event("go", client=client).set()
            assert await waits
            assert private.has_tasks(worker), "its result is kept"
            assert not private.has_work(worker)
            before = scheduler.workers[worker.address].last_seen
            await private.send_heartbeat(worker)
            assert scheduler.workers[worker.address].last_seen > before

    asyncio.run(look())


def test_a_client_in_the_schedulers_process_knows_the_workers_and_its_connection() -> None:
    ways = {"protocol": ["tcp://", "inproc://"], "host": ["127.0.0.1", None], "port": [0, None]}
    workers = {"first": {"cls": Worker, "options": {"nthreads": 1, **NO_DASHBOARD}}}
    scheduler = {"cls": Scheduler, "options": {**NO_DASHBOARD, **ways}}
    with (
        dask.config.set({"distributed.comm.require-encryption": False}),  # as it is until a cluster was started here
        SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        private.own_client(cluster) as client,
    ):
        assert client.scheduler.address.startswith("inproc://")
        connection = private.connection(client)
        assert connection is not None
        [(address, known)] = private.known_workers(client, 5).items()
        assert address == cluster.workers["first"].address
        assert (known.name, known.host, known.is_draining) == ("first", "127.0.0.1", False)
        assert known.last_seen > 0
        assert private.connection(client) is connection


def test_no_other_module_reaches_into_dask_or_makes_a_client_that_loads_pickles() -> None:
    """What is used in two places is found in one of them when a release has moved it."""
    found = []
    for file in Path(private.__file__).parents[1].rglob("*.py"):
        if "distributed" not in (text := file.read_text()) or file.name == "private.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                found += [called] if called.endswith(("Client", "_client.run", "run_on_scheduler")) else []
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and file.parent.name == "cluster":
                found += [] if ast.unparse(node.value) in ("self", "os") else [f"{file.name} {ast.unparse(node)}"]
    assert found == []


WORLD = "a scheduler and its worker"

run_in: list[str] = []
"""Names of the threads in which a pickle of a worker was run."""


def mark() -> "Hostile":
    run_in.append(threading.current_thread().name)
    return Hostile()


class Hostile(Exception):
    """Runs code wherever it is unpickled."""

    def __reduce__(self) -> Any:
        return mark, ()


def fail() -> None:
    raise Hostile


def tell(topic: str, message: Any) -> bytes:
    get_worker().log_event(topic, message())
    return b"told"


@pytest.fixture
def scheduler_address() -> Iterator[str]:
    """A scheduler with a worker, which run in a thread of their own."""
    addresses: list[str] = []
    ready, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with (
            Scheduler(host="127.0.0.1", port=0, protocol="tcp://", **NO_DASHBOARD) as scheduler,
            Worker(scheduler.address, nthreads=1, **NO_DASHBOARD) as worker,
        ):
            addresses.extend([scheduler.address, worker.address])
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.01)

    with dask.config.set({"distributed.comm.require-encryption": False}):
        world = threading.Thread(target=lambda: asyncio.run(serve()), name=WORLD)
        world.start()
        ready.wait()
        yield addresses[0]
        ended.set()
        world.join()
    run_in.clear()


HOSTILE: dict[str, Callable[[], Any]] = {
    "its result": lambda: Hostile(),
    "a part of its result": lambda: [b"good", Hostile()],
    "its exception": fail,
    "its warning": lambda: tell("warn", lambda: {"message": dumps(Hostile()), "category": dumps(Hostile())}),
    "an event": lambda: tell("news", lambda: {"key": to_serialize(Hostile())}),
    "a message that the scheduler has to pickle": lambda: tell("news", lambda: ToPickle(Hostile())),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_a_client_runs_no_pickle_of_a_worker(scheduler_address: str, way: str) -> None:
    """Whoever takes a worker over would otherwise run code in the service."""
    with closing(private.remote_client(scheduler_address, Security(), 5)) as client:
        news: list[Any] = []
        client.subscribe_topic("news", news.append)
        future = client.submit(HOSTILE[way], pure=False)
        try:
            content = private.packed_bytes(future.result(timeout=20))
        except Exception as error:
            content = type(error).__name__.encode()
        refused = {"its result": b"TypeError", "a part of its result": b"TypeError", "its exception": b"CallEnded"}
        assert content == refused.get(way, b"told")
        good = client.submit(tell, "news", lambda: "good", pure=False)
        assert private.packed_bytes(good.result(timeout=20)) == b"told", "the client goes on"
        assert news[-1][1] == "good"
        assert not {"IO loop", "MainThread"} & set(run_in), run_in


def test_a_client_runs_no_type_of_a_result_and_reads_no_answer_of_a_call_outside_of_tasks(
    scheduler_address: str,
) -> None:
    with closing(private.remote_client(scheduler_address, Security(), 5)) as client:
        future = client.submit(tell, "news", lambda: "good", pure=False)
        future.result(timeout=20)
        future._state.type = None
        client.loop.add_callback(client._handle_key_in_memory, key=future.key, type=dumps(Hostile()), workers=())
        private.packed_bytes(client.submit(tell, "news", lambda: "good", pure=False).result(timeout=20))
        assert run_in == []
        [worker] = private.known_workers(client, 5)
        private.call_on(client, worker, mark)
        private.call_on(client, worker, fail)
        assert set(run_in) == {WORLD}
