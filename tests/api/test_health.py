"""Alive and ready are two questions."""

from pathlib import Path

from app_in_process import App, app_in_process, refused

from evalsvc import __version__


def test_healthz(app: App) -> None:
    assert app.http.get("/healthz").json() == {"status": "ok", "version": __version__}


def test_ready(app: App) -> None:
    response = app.http.get("/readyz")
    assert response.json() == {"status": "ok", "database": "ok", "schema": "ok", "workers": 1}


def test_not_ready_without_workers(app: App) -> None:
    app.coordinator.processes = 0
    refused(app.http.get("/readyz"), 503, "not_ready", "no live worker", "evalsvc doctor")
    assert app.http.get("/healthz").status_code == 200


def test_not_ready_on_another_schema(app: App) -> None:
    """Somebody migrated the database under a running service."""
    with app.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    refused(app.http.get("/readyz"), 503, "not_ready", "schema version 9999")


def test_not_ready_without_a_coordinator(app: App) -> None:
    """Its thread had died of an exception, and nothing said so: posts were taken and never evaluated."""
    app.coordinator.living = False
    refused(app.http.get("/readyz"), 503, "not_ready", "the coordinator hands nothing out any more; restart")


def test_not_ready_while_it_drains(app: App, weights: Path) -> None:
    """What is posted meanwhile is kept for the next start; a load balancer sends nothing here any more."""
    app.coordinator.leaving = True
    refused(app.http.get("/readyz"), 503, "not_ready", "draining: it ends once what runs is stored", "EVALSVC_GRACE")
    assert app.post(weights).status_code == 201


def test_a_reader_is_ready_without_workers_and_writes_nothing(tmp_path: Path, weights: Path) -> None:
    with app_in_process(tmp_path / "data", read_only=1) as reader:
        reader.coordinator.processes, reader.coordinator.living = 0, False
        ready = reader.http.get("/readyz").json()
        assert ready == {"status": "ok", "database": "ok", "schema": "ok", "workers": 0, "read_only": True}
        refused(reader.post(weights), 503, "read_only", "answers reads alone (--read-only); write to the other one")
        assert reader.http.get("/v1/runs").json() == {"runs": []}


def test_who_lost_the_database_takes_no_posts(app: App, weights: Path) -> None:
    """They would be taken twice, or by a service that nobody looks at any more."""
    app.coordinator.replaced = True
    refused(app.post(weights), 503, "read_only", "another service has taken over the database; write to that one")
    refused(app.http.get("/readyz"), 503, "not_ready", "another service has taken over the database; stop this one")
