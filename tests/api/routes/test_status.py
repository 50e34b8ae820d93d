"""`GET /v1/status`: the queue as it is, on each database."""

from pathlib import Path

from app_in_process import App

from evalsvc.client import Client
from evalsvc.spec.documents import Worker
from evalsvc.store.queue.status import AtWork


def test_an_empty_service(app: App) -> None:
    with Client("http://evalsvc", transport=app.transport) as client:
        found = client.status()
    assert found.status == "ready"
    assert found.workers == [Worker(name="cpu#0", host="127.0.0.1", takes_shards=True, runs=None)]
    assert (found.queue.queued, found.queue.seconds_left, found.queue.runs) == (0, None, [])
    app.coordinator.processes = 0
    found = app.http.get("/v1/status").json()
    assert (found["status"], found["workers"]) == ("not_ready", [])
    assert "no live worker" in found["missing"][0]


def test_what_a_worker_runs(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.step()
    app.coordinator.busy = {"tls://0": AtWork(1, "run", 12.5)}
    found = app.http.get("/v1/status").json()
    expected = {"evaluation": 1, "run": "run-a", "step": 25, "stage": "run", "seconds": 12.5}
    assert expected.items() <= found["workers"][0]["runs"].items()
    app.coordinator.busy = {"tls://0": AtWork(4711, "run", 12.5)}  # its run was deleted meanwhile
    assert app.http.get("/v1/status").json()["workers"][0]["runs"] is None
