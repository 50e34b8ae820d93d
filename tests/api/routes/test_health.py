"""Alive and ready are two questions; and the queue as it is."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused
from sqlalchemy import event

from evalsvc import __version__
from evalsvc.client import Client
from evalsvc.installation import code_digest, find_commit
from evalsvc.spec.documents import Worker
from evalsvc.store import session
from evalsvc.store.queue.status import AtWork


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("processes", 0, ["no live worker", "evalsvc doctor"]),
        # Its thread had died of an exception, and nothing said so: posts were taken and never evaluated.
        ("living", False, ["the coordinator has stopped; restart"]),
        ("leaving", True, ["the service is draining: it stops once", "EVALSVC_GRACE"]),
    ],
)
def test_not_ready_while_nothing_can_run(app: App, weights: Path, name: str, value: object, words: list[str]) -> None:
    """What is posted meanwhile is kept for the next start; a load balancer sends nothing here any more."""
    setattr(app.coordinator, name, value)
    refused(app.http.get("/readyz"), 503, "not_ready", *words)
    assert app.http.get("/healthz").status_code == 200
    assert app.post(weights).status_code == 201


def test_not_ready_while_nothing_can_be_written(app: App, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads went on, and a balancer sent it posts, each of which was refused."""
    with app.store.engine.connect() as connection:
        [size] = connection.exec_driver_sql("PRAGMA page_count").one()

    def fill_up(connection: Any, _record: object, _proxy: object) -> None:
        connection.execute(f"PRAGMA max_page_count={size}")

    assert app.http.get("/readyz").status_code == 200
    event.listen(app.store.engine, "checkout", fill_up)
    words = "cannot be used: database or disk is full"
    refused(app.post(weights, tags={str(number): "y" * 500 for number in range(100)}), 503, "database_unusable", words)
    refused(app.http.get("/readyz"), 503, "not_ready", words)
    event.remove(app.store.engine, "checkout", fill_up)
    monkeypatch.setattr(session, "PROBE_AGAIN", 0.0)
    app.store.writes.note_failure(OSError("as before"))
    assert app.http.get("/readyz").status_code == 200, "a write that is taken ends it"


def test_not_ready_on_a_full_disk(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not somebody has tried to write."""
    monkeypatch.setattr(session, "ROOM", 2**62)
    refused(app.http.get("/readyz"), 503, "not_ready", "bytes are free, fewer than", "free some space")


def test_not_ready_while_another_writer_keeps_all_out(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one is waited for; only where a write has failed, nobody can tell when the next one will be taken."""
    other = sqlite3.connect(app.settings.data_path / "evalsvc.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert app.http.get("/readyz").status_code == 200
    monkeypatch.setattr(session, "PROBE_AGAIN", 0.0)
    app.store.writes.note_failure(sqlite3.OperationalError("database is locked"))
    refused(app.http.get("/readyz"), 503, "not_ready", "database is locked")
    other.close()


def test_a_damaged_database_is_no_bug(app: App, weights: Path) -> None:
    """It answered that evalsvc has a bug, or that nothing is lost."""
    assert app.post(weights).status_code == 201
    with app.store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    app.store.engine.dispose()
    file = app.settings.data_path / "evalsvc.db"
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xa5" * (file.stat().st_size - 4096))
    words = ("evalsvc.db is damaged: database disk image is malformed; stop the service and restore a backup",)
    for answer in (app.http.get("/v1/runs"), app.post(weights, step=26)):
        assert "nothing that was stored is lost" not in refused(answer, 503, "database_unusable", *words)
    refused(app.http.get("/readyz"), 503, "not_ready", "is damaged")


def test_a_reader_is_ready_without_workers_and_writes_nothing(start_app: Callable[..., App], weights: Path) -> None:
    reader = start_app(read_only=1)
    reader.coordinator.processes, reader.coordinator.living = 0, False
    ready = reader.http.get("/readyz").json()
    assert ready == {"status": "ok", "database": "ok", "schema": "ok", "workers": 0, "read_only": True}
    refused(reader.post(weights), 503, "read_only", "is read-only (--read-only); send writes to the other")
    assert reader.http.get("/v1/runs").json()["runs"] == []


def test_who_lost_the_database_takes_no_posts(app: App, weights: Path) -> None:
    """They would be taken twice, or by a service that nobody looks at any more."""
    app.coordinator.replaced = True
    words = "another service has taken over the database; "
    refused(app.post(weights), 503, "read_only", f"{words}send writes to that service")
    refused(app.http.get("/readyz"), 503, "not_ready", f"{words}stop this one")


def test_an_empty_service(app: App) -> None:
    """It is alive, and ready until somebody migrates the database under it."""
    code = {"code": code_digest(), "commit": find_commit()}
    assert app.http.get("/healthz").json() == {"status": "ok", "version": __version__, **code}
    assert app.http.get("/readyz").json() == {"status": "ok", "database": "ok", "schema": "ok", "workers": 1}
    with Client("http://evalsvc", transport=app.transport) as client:
        found = client.status()
    for path in ("/v1/status", "/status"):
        known = {"If-None-Match": app.http.head(path).headers["etag"]}
        assert (app.http.get(path, headers=known).status_code, app.http.get(path).status_code) == (304, 200)
    assert found.status == "ready"
    assert found.workers == [Worker(name="cpu#0", host="127.0.0.1", runs=None)]
    assert (found.queue.queued, found.queue.seconds_left, found.queue.runs) == (0, None, [])
    app.coordinator.processes = 0
    found = app.http.get("/v1/status").json()
    assert (found["status"], found["workers"]) == ("not_ready", [])
    assert "no live worker" in found["missing"][0]
    with app.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    refused(app.http.get("/readyz"), 503, "not_ready", "schema version 9999")


def test_what_a_worker_runs(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.step()
    app.coordinator.busy = {"tls://0": AtWork(1, "run", 12.5)}
    found = app.http.get("/v1/status").json()
    expected = {"evaluation": 1, "run": "run-a", "step": 25, "stage": "run", "seconds": 12.5}
    assert expected.items() <= found["workers"][0]["runs"].items()
    app.coordinator.busy = {"tls://0": AtWork(4711, "run", 12.5)}  # its run was deleted meanwhile
    assert app.http.get("/v1/status").json()["workers"][0]["runs"] is None
