"""The web application without a port or worker processes, on a real migrated database."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from migrated import copy_migrated
from queue_steps import metric, ran, result

from evalsvc.api.app import create_app
from evalsvc.api.middleware.access import Needs, needs_of
from evalsvc.api.server import listen
from evalsvc.cluster.cluster import Member
from evalsvc.config import Settings
from evalsvc.messages import LookResult, PlanResult, ShardError, ShardOutput, ShardResult
from evalsvc.service.coordinator import Coordinator
from evalsvc.store.queue.attempts import finish, take
from evalsvc.store.queue.status import AtWork
from evalsvc.store.session import Store
from evalsvc.store.views import LiveTask


def needs_by_route(app: FastAPI) -> dict[tuple[str, str], Needs | None]:
    return {
        (method, getattr(route, "path_format", "")): needs_of(route)
        for route in app.routes
        for method in (getattr(route, "methods", None) or ["GET"])
        if method != "HEAD"
    }


class InlineCoordinator(Coordinator):
    """Does nothing by itself; `work` does what is queued, at once and in the caller's thread."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.woken = 0
        self.working = False
        self.error: ShardError | None = None
        self.tasks: dict[int, LiveTask] = {}
        self.processes = 1
        self.busy: dict[str, AtWork] = {}
        self.living = True
        self.leaving = False
        self.replaced = False
        self.looks: list[tuple[int, int]] = []

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def wake(self) -> None:
        self.woken += 1
        if self.working:
            self.work()

    def live(self) -> dict[int, LiveTask]:
        return self.tasks

    def members(self) -> list[Member]:
        return [Member(f"tls://{index}", f"cpu#{index}", "127.0.0.1", "") for index in range(self.processes)]

    def at_work(self) -> dict[str, AtWork]:
        return self.busy

    def workers(self) -> int:
        return self.processes

    def alive(self) -> bool:
        return self.living

    def displaced(self) -> bool:
        return self.replaced

    def draining(self) -> bool:
        return self.leaving

    def work(self) -> None:
        """Bring every shard that waits to its end: succeeded, or failed by `error`."""
        while self.step():
            pass

    def step(self) -> bool:
        with self.store.transaction() as session:
            assignment = take(session, Path("/data"))
            if assignment is None:
                return False
            outputs: dict[str, ShardOutput | None] = {
                "plan": PlanResult([{"units": 4}, {"units": 4}], 8, "sequences", self.looks),
                "run": ran().output,
                "look": LookResult([metric(1.25).to_json()], {}),
                "merge": result(metric(1.5), metric(float("nan"), "loss/image")).output,
            }
            stage = assignment.request.stage
            failed = self.error if stage == "run" else None
            return finish(session, assignment, ShardResult(None if failed else outputs[stage], failed, {"seconds": 1}))


class App:
    def __init__(self, settings: Settings, portal: BlockingPortal, insecure: bool = False) -> None:
        self.settings = settings
        self.portal = portal
        self.app = create_app(settings, InlineCoordinator, insecure=insecure)
        self.transport = AppTransport(self.app, portal)
        self.http = httpx2.Client(transport=self.transport, base_url="http://evalsvc")

    @property
    def store(self) -> Store:
        return self.app.state.state.store

    @property
    def coordinator(self) -> InlineCoordinator:
        return self.app.state.state.coordinator

    def post(self, uri: Path | str, run: str = "run-a", step: int = 25, **fields: Any) -> httpx2.Response:
        return self.http.post("/v1/checkpoints", json={"run": run, "step": step, "uri": str(uri), **fields})


class AppTransport(httpx2.BaseTransport):
    def __init__(self, app: Any, portal: BlockingPortal) -> None:
        self._transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        self._portal = portal

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._portal.call(self._answer, request)

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._transport.handle_async_request(request)
        sent = b"".join([piece async for piece in response.aiter_raw()])  # httpx2 decompresses what it is given
        return httpx2.Response(response.status_code, headers=response.headers, content=sent)


@contextmanager
def app_in_process(data_dir: Path, *, insecure: bool = False, **settings: Any) -> Iterator[App]:
    data_dir.mkdir(exist_ok=True)
    copy_migrated(data_dir / "evalsvc.db")
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        app = App(Settings(data_dir=str(data_dir), **{"allowed_hosts": "evalsvc", **settings}), portal, insecure)
        stack.enter_context(portal.wrap_async_context_manager(app.app.router.lifespan_context(app.app)))
        yield app


@contextmanager
def app_on_port(data_dir: Path, database_url: str = "", **settings: Any) -> Iterator[tuple[str, Any]]:
    data_dir.mkdir(exist_ok=True)
    copy_migrated(data_dir / "evalsvc.db")
    app = create_app(Settings(data_dir=str(data_dir), database_url=database_url, **settings), InlineCoordinator)
    # A stream that a client has left open would hold up the end for as long as it lasts.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.state
        finally:
            server.should_exit = True
            thread.join()


def refused(response: httpx2.Response, status: int, code: str, *words: str) -> str:
    """The detail of a problem, after checking its shape, its status, its code, and that its detail has the words."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert set(document) == {"type", "title", "status", "detail", "code"}
    assert (response.status_code, document["status"], document["code"]) == (status, status, code), document
    for word in words:
        assert word in document["detail"], document["detail"]
    return document["detail"]
