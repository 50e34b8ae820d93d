"""Which requests wait for which: no kind of work takes the turns of another."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from app_in_process import App

from evalsvc.api.middleware.threads import THREADS
from evalsvc.api.routes import runs

CROWD = 60
"""More than there ever were threads."""


@contextmanager
def crowd(ask: Callable[[int], httpx.Response]) -> Iterator[list[Future[httpx.Response]]]:
    with ThreadPoolExecutor(CROWD) as pool:
        yield [pool.submit(ask, number) for number in range(CROWD)]


def test_reads_that_hang_hold_up_neither_probes_nor_posts(
    app: App, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests had the same forty threads: 45 slow ones made the health check take 4.5 s."""
    begun, ended = threading.Semaphore(0), threading.Event()

    def hang(*_: object) -> list[object]:
        begun.release()
        ended.wait(30)
        return []

    monkeypatch.setattr(runs, "runs_view", hang)
    with crowd(lambda _: app.http.get("/v1/runs")) as readers:
        try:
            for _ in range(THREADS["read"]):
                assert begun.acquire(timeout=20)
            since = time.monotonic()
            assert app.http.get("/healthz").status_code == 200
            assert app.http.get("/readyz").status_code == 200
            assert app.post(weights).status_code == 201
            assert time.monotonic() - since < 10
            assert not any(reader.done() for reader in readers)
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
