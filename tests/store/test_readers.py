"""Many readers of the history at once, by HTTP, while the service stores what its workers found."""

import asyncio
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from app_in_process import app_on_port
from history_reference import Point, write
from queue_steps import measure

from evalsvc.store.session import POOL, Store

READERS = 200
SECONDS = 1.0


def store_results(store: Store, over: threading.Event) -> int:
    """Evaluate one checkpoint after another; how many there were."""
    step = 0
    while not over.is_set():
        step += 1
        measure(store, step, float(step), run="run-b")
    return step


async def read_all(url: str) -> list[int]:
    """How often each reader had an answer. Each reads in turns what the others read, too."""
    paths = [f"/v1/runs/run-a/{rest}" for rest in ("metrics", "metrics?points=50", "metrics?limit=100", "summary")]
    until = time.monotonic() + SECONDS
    limits = httpx.Limits(max_connections=READERS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:

        async def read(number: int) -> int:
            count = 0
            while count == 0 or time.monotonic() < until:
                response = await client.get(paths[(number + count) % len(paths)])
                assert response.status_code == 200, response.text
                assert response.json()["run"] == "run-a"
                count += 1
            return count

        return await asyncio.gather(*(read(number) for number in range(READERS)))


@pytest.mark.usefixtures("many_cases")
def test_readers_and_a_writer_get_along(database_url: str, tmp_path: Path) -> None:
    """The pool of connections had room for 15; those that waited longer than 30 s failed with 500, and a writer of
    SQLite gave up."""
    with app_on_port(tmp_path / "data", database_url) as (url, state):
        write(state.store, {f"lower/{index}": [Point(step, 0.5, 0.1, 8) for step in range(100)] for index in range(3)})
        over = threading.Event()
        stored: list[int] = []
        writer = threading.Thread(target=lambda: stored.append(store_results(state.store, over)))
        writer.start()
        try:
            counts = asyncio.run(read_all(url))
        finally:
            over.set()
            writer.join()
        assert min(counts) >= 1
        assert stored, "the writer ended by an error"
        assert stored[0] >= 1


def test_a_request_never_waits_for_a_connection() -> None:
    """Each of the web server's threads reads by a connection of its own; coordinator and spooler have theirs."""

    async def threads() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert sum(POOL.values()) >= asyncio.run(threads()) + 4


def test_no_connection_is_an_error_that_can_be_tried_again(tmp_path: Path) -> None:
    """It was a 500 that named a bug."""
    with app_on_port(tmp_path / "data") as (url, state), ExitStack() as stack:
        for _ in range(sum(POOL.values())):
            stack.enter_context(state.store.engine.connect())
        state.store.engine.pool._timeout = 0.1
        response = httpx.get(f"{url}/v1/runs", trust_env=False)
        assert (response.status_code, response.json()["code"]) == (503, "database_unusable")
