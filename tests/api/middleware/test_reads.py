"""Reads begin one after the other, and nothing else waits for them."""

import asyncio
from typing import Any

import pytest

from evalsvc.api.middleware.threads import THREADS, Admission

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
        others = [
            ("/healthz", "GET", {}),
            ("/v1/checkpoints", "POST", {}),
            ("/v1/table", "GET", {}),
            ("/panels/curve.png", "GET", {}),
        ]
        others += [
            ("/v1/body", "GET", {"content_length": "7"}),
            ("/v1/chunks", "GET", {"transfer_encoding": "chunked"}),
        ]
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
