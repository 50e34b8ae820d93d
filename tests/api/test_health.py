"""Alive and ready are two questions."""

from app_in_process import App, refused

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
