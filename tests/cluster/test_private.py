"""What of Dask is used and not documented is where it was; a release that moved it fails here, by name."""

import ast
import asyncio
import inspect
from pathlib import Path

import dask
from distributed import Client, Event, Nanny, Scheduler, Worker
from distributed.deploy.spec import SpecCluster
from distributed.diagnostics.plugin import WorkerPlugin

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


def test_no_other_module_of_the_package_reaches_into_dask() -> None:
    """What is used in two places is found in one of them when a release has moved it."""
    folder = Path(private.__file__).parent
    found = [
        f"{file.name}:{node.lineno} {ast.unparse(node)}"
        for file in folder.glob("*.py")
        if file.name != "private.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node.value) not in ("self", "os")
    ]
    assert found == []
