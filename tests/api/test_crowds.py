"""Many at once: clients that post the same, and evaluations that wait."""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
from app_in_process import app_on_port
from long_queue import fill_queue
from service_process import ServiceProcess

from evalsvc.api.middleware.threads import THREADS
from evalsvc.store.queue.attempts import take
from evalsvc.store.tables import Checkpoint, Evaluation, Run

WAITING = 10_000


@pytest.fixture(params=["sqlite", pytest.param("migrated_postgresql", id="postgresql")])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """An empty service on each database: its address and its `State`."""
    url = "" if request.param == "sqlite" else request.getfixturevalue(request.param)
    with app_on_port(tmp_path / "data", url) as started:
        yield started


def test_twenty_clients_that_post_the_same_have_one_checkpoint_evaluated_once(
    service: tuple[str, Any], weights: Path
) -> None:
    url, state = service
    body = {"run": "run-a", "step": 25, "uri": str(weights), "suites": ["loss"], "spool": "copy"}

    def post(_: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/checkpoints", json=body, timeout=60)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["checkpoint"]["id"] for answer in answers}) == 1
    assert len({answer.json()["evaluations"][0]["id"] for answer in answers}) == 1
    with state.store.reading() as session:
        tables = (Run, Checkpoint, Evaluation)
        counts = [session.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables]
    assert counts == [1, 1, 1]


def median_ms(do: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - begun)
    return 1_000 * statistics.median(seconds)


@pytest.mark.usefixtures("many_cases")
def test_ten_thousand_evaluations_may_wait(
    service: tuple[str, Any], weights: Path, record_property: Callable[[str, object], None]
) -> None:
    """The limits are wide: a machine that does much else is slower by far, and what reads every row slower still."""
    url, state = service
    with state.store.transaction() as session:
        fill_queue(session, WAITING)

    def dispatch() -> None:
        with state.store.transaction() as session:
            assert take(session, Path("/data")) is not None

    body = {"run": "run-new", "step": 1, "uri": str(weights), "suites": ["loss"]}
    with httpx.Client(base_url=url, timeout=60) as client:
        took = {
            "take": median_ms(dispatch, 15),
            "GET evaluation": median_ms(lambda: client.get("/v1/evaluations/5000").raise_for_status(), 15),
            "GET runs": median_ms(lambda: client.get("/v1/runs").raise_for_status(), 5),
            "POST checkpoint": median_ms(lambda: client.post("/v1/checkpoints", json=body).raise_for_status(), 15),
        }
    for name, milliseconds in took.items():
        record_property(name, milliseconds)
    print({name: round(milliseconds, 1) for name, milliseconds in took.items()})
    assert took["take"] < 500, took
    assert max(took.values()) < 2_000, took


@pytest.mark.usefixtures("child_process")
def test_a_hundred_pictures_at_once_hold_up_no_reader(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """24 links to charts as PNG stopped every reader for 32 s."""
    service = ServiceProcess(tmp_path / "data", "--devices", "cpu").start()
    try:
        own = random.Random(1)
        for run in ("a", "b", "c", "d"):
            series = [{"metric": "loss/text", "step": list(range(500)), "value": [own.random() for _ in range(500)]}]
            service.request("POST", f"/v1/runs/{run}/metrics", json={"source": "x", "series": series})
        assert service.process is not None
        process, ended = psutil.Process(service.process.pid), threading.Event()
        renders: list[int] = []

        def count() -> None:
            while not ended.wait(0.02):
                running = 0
                for child in process.children():
                    with suppress(psutil.Error):  # it has ended meanwhile
                        running += "evalsvc.web.vega" in child.cmdline()
                renders.append(running)

        def draw(at: int) -> tuple[int, bytes]:
            address = f"/panels/curve.png?run=a&run=b&run=c&run=d&metric=loss/text&points=500&to={600 + at}"
            answer = service.ask("GET", address, timeout=300)
            return answer.status_code, answer.content[:8]

        counter = threading.Thread(target=count)
        counter.start()
        seconds: dict[str, list[float]] = {}
        with ThreadPoolExecutor(100) as pool:
            drawn = [pool.submit(draw, at) for at in range(100)]
            while not all(each.done() for each in drawn):
                for path in ("/v1/runs", "/v1/runs/a/metrics?metric=loss/text", "/healthz"):
                    begun = time.perf_counter()
                    assert service.ask("GET", path).status_code == 200
                    seconds.setdefault(path, []).append(time.perf_counter() - begun)
        ended.set()
        counter.join()
    finally:
        service.stop()
    answers = [each.result() for each in drawn]
    figures = {path: (round(statistics.median(times), 3), round(max(times), 3)) for path, times in seconds.items()}
    figures |= {"renders": max(renders), "drawn": sum(status == 200 for status, _ in answers)}
    record_property("figures", figures)
    print(figures)
    assert {status for status, _ in answers} == {200, 429}
    assert all(head == b"\x89PNG\r\n\x1a\n" for status, head in answers if status == 200)
    assert 0 < max(renders) <= THREADS["render"]
    assert all(statistics.median(times) < 1 for times in seconds.values()), figures
