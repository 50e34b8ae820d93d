"""Which requests wait for which: no kind of work takes the turns of another."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
from app_in_process import App

from evalsvc.api import own_reader
from evalsvc.api.middleware.threads import AT_ONCE, THREADS, Admission, Kind
from evalsvc.api.routes import runs

CROWD = 60
"""More than there ever were threads."""


@contextmanager
def crowd(ask: Callable[[int], httpx2.Response]) -> Iterator[list[Future[httpx2.Response]]]:
    with ThreadPoolExecutor(CROWD) as pool:
        yield [pool.submit(ask, number) for number in range(CROWD)]


@pytest.mark.parametrize(
    ("module", "path", "kind"), [(runs, "/v1/runs", "read"), (own_reader, "/", "page")], ids=["reads", "pages"]
)
def test_reads_and_pages_that_hang_hold_up_neither_probes_nor_posts(
    app: App, weights: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, path: str, kind: Kind
) -> None:
    """All requests had the same forty threads: 45 slow ones made the health check take 4.5 s."""
    begun, ended, view = threading.Semaphore(0), threading.Event(), module.runs_view

    def hang(*arguments: Any) -> Any:
        begun.release()
        ended.wait(30)
        return view(*arguments)

    monkeypatch.setattr(module, "runs_view", hang)
    with crowd(lambda _: app.http.get(path)) as readers:
        try:
            for _ in range(THREADS[kind]):
                assert begun.acquire(timeout=20)
            since = time.monotonic()
            assert app.http.get("/healthz").status_code == 200
            assert app.http.get("/readyz").status_code == 200
            assert app.post(weights).status_code == 201
            assert time.monotonic() - since < 10
            assert not begun.acquire(blocking=False), "one more waits"
        finally:
            ended.set()
    assert {reader.result().status_code for reader in readers} == {200}


def test_posts_that_wait_hold_up_neither_probes_nor_reads(app: App, weights: Path) -> None:
    with app.app.state.state.lock, crowd(lambda number: app.post(weights, run=f"run-{number}")) as posts:
        since = time.monotonic()
        for path in ("/healthz", "/readyz", "/v1/runs", "/v1/status"):
            assert app.http.get(path).status_code == 200
        assert time.monotonic() - since < 5
        assert not any(post.done() for post in posts)
        app.app.state.state.lock.release()
        assert {post.result().status_code for post in posts} == {201}
        app.app.state.state.lock.acquire()


READS = THREADS["read"]


class Route:
    """An application whose answers begin, and end, when they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.answer = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append(scope["path"])
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.end.wait()


async def ignore(message: Any) -> None:
    pass


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def ask(app: Admission, path: str, method: str = "GET", **headers: str) -> asyncio.Task[None]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    return asyncio.ensure_future(app(scope, ignore, ignore))  # type: ignore[arg-type]


def test_reads_wait_for_each_other_and_nothing_else_waits_for_them() -> None:
    """Two hundred readers each took a step in every turn of the event loop, and a probe waited for all of them."""

    async def run() -> None:
        route = Route()
        app = Admission(route)
        tasks = [ask(app, f"/v1/runs/{number}/metrics") for number in range(READS + 2)]
        others = [(path, "GET", {}) for path in ("/healthz", "/v1/table", "/panels/curve.png")]
        others += [("/v1/checkpoints", "POST", {}), ("/v1/body", "GET", {"content_length": "7"})]
        others += [("/v1/chunks", "GET", {"transfer_encoding": "chunked"})]
        tasks += [ask(app, path, method, **headers) for path, method, headers in others]
        await turns()
        assert route.begun[:READS] == [f"/v1/runs/{number}/metrics" for number in range(READS)]
        assert sorted(route.begun[READS:]) == sorted(path for path, _, _ in others)
        route.answer.set()  # an answer that has begun holds no place, however long it goes on
        await turns()
        assert route.begun[-2:] == [f"/v1/runs/{number}/metrics" for number in (READS, READS + 1)]
        assert not any(task.done() for task in tasks)
        route.end.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    # A line feed in the name was no picture for the limit of reads, and one for the queue of pictures.
    for name in ("a\n", "a\nb", "\u2028", ".svg", "a.png", ".", "\0"):
        assert AT_ONCE.fullmatch(f"/panels/{name}.png"), name


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_read_that_fails_or_is_given_up_leaves_its_place(cancelled: bool) -> None:
    async def run() -> None:
        async def fail(scope: Any, receive: Any, send: Any) -> None:
            if not cancelled:
                raise ValueError
            await asyncio.Event().wait()

        app = Admission(fail)
        for _ in range(3 * READS):
            task = ask(app, "/v1/runs")
            await turns()
            task.cancel()
            with pytest.raises((ValueError, asyncio.CancelledError)):
                await task

    asyncio.run(run())
