"""The page of the service's state."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, app_in_process

from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.spec import documents
from evalsvc.store.queue.status import AtWork
from evalsvc.web.formats import bytes_
from evalsvc.web.page import Surroundings, html_of
from evalsvc.web.pages.status import StatusPage, time_left


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data", roots=str(tmp_path)) as app:
        yield app


def page(app: App) -> str:
    with Client("http://evalsvc", transport=app.transport) as client:
        return html_of("status.html", StatusPage().content(client), Surroundings(None, "http://evalsvc"))


def test_workers_queue_and_storage(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.step()
    app.coordinator.busy = {"tls://0": AtWork(1, "run", 12.5)}
    shown = page(app)
    assert '<a href="/evaluations/1">run-a@25</a>' in shown
    assert "unknown: no evaluation ended in the last hour" in shown
    disk = app.http.get("/v1/status").json()["disk"]
    assert f"SQLite, {bytes_(disk['database_bytes'])}" in shown
    assert f"{bytes_(disk['free_bytes'])} of {bytes_(disk['total_bytes'])}" in shown


def test_failures_have_their_cure_and_what_is_missing_is_told(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    app.coordinator.processes = 0
    shown = page(app)
    assert "not ready" in shown
    assert "no live worker" in shown
    assert "EVALSVC_BATCH_TOKENS" in shown


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queued": 0, "running": 0}, "the queue is empty"),
        ({"seconds_left": None}, "unknown: no evaluation ended in the last hour"),
        ({"finished_last_hour": 20}, "about 20 min at the pace of the last hour, idle time left out"),
        ({"finished_last_hour": 2}, "few evaluations ended, so this may be far off"),
    ],
)
def test_the_time_left_says_what_it_rests_on(fields: dict[str, Any], words: str) -> None:
    shards = documents.OpenShards(queued=9, running=1)
    queue: dict[str, Any] = {
        "queued": 3,
        "running": 1,
        "oldest_seconds": 1.0,
        "shards": shards,
        "finished_last_hour": 12,
        "seconds_left": 1200.0,
        "runs": [],
    }
    assert words in time_left(documents.Queue(**queue | fields))
