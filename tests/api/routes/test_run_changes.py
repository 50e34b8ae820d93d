"""Runs are renamed and deleted over REST, and by the client."""

from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.client import Client
from evalsvc.errors import WrongState
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.tables import Artifact


def test_delete_takes_the_files_that_nobody_else_needs(app: App, weights: Path) -> None:
    for run in ("run-a", "run-b"):
        app.post(weights, run=run, suites=["loss"], spool="link").raise_for_status()
    app.coordinator.work()
    app.post(weights, run="run-a", step=50, suites=["loss"], spool="link").raise_for_status()
    folder = app.settings.artifacts_path
    own, shared = keep_content(folder, b"own"), keep_content(folder, b"shared")
    with app.store.transaction() as session:
        common = {"kind": "grid", "media_type": "image/png", "size": 3, "details": {}}
        session.add(Artifact(task_id=1, name="a", sha256=own, **common))
        session.add(Artifact(task_id=1, name="b", sha256=shared, **common))
        session.add(Artifact(task_id=3, name="b", sha256=shared, **common))
    spool = app.settings.data_path / "spool"
    assert (spool / "3").is_dir()
    refused(app.http.delete("/v1/runs/run-a"), 422, "invalid_request", "confirm")
    refused(app.http.delete("/v1/runs/run-a?confirm=run-b"), 422, "invalid_request", "to delete, give confirm=run-a")
    refused(
        app.http.delete("/v1/runs/run-a?confirm=run-a"), 409, "wrong_state", "unfinished evaluations (3)", "cancel=true"
    )
    response = app.http.delete("/v1/runs/run-a?confirm=run-a&cancel=true")
    assert response.json() == {
        "run": "run-a",
        "checkpoints": 2,
        "evaluations": 2,
        "values": 2,
        "artifacts": 2,
        "freed_bytes": 3,
    }
    assert not artifact_path(folder, own).exists()
    assert artifact_path(folder, shared).exists()
    assert not (spool / "3").exists()
    assert weights.exists()
    refused(app.http.get("/v1/runs/run-a"), 404, "unknown_name")
    assert len(app.http.get("/v1/runs/run-b/metrics").json()["series"]) == 2


def test_a_kept_history_is_out_of_date_after_renaming(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    app.post(weights, run="run-b", suites=[]).raise_for_status()
    tag = app.http.get("/v1/runs/run-a/metrics").headers["etag"]
    refused(app.http.patch("/v1/runs/run-a", json={"name": "run-b"}), 409, "conflict", "a run 'run-b' exists")
    refused(app.http.patch("/v1/runs/run-a", json={"name": "a b"}), 422, "invalid_request", "is not a name")
    assert app.http.patch("/v1/runs/run-a", json={"name": "run-z"}).json()["name"] == "run-z"
    again = app.http.get("/v1/runs/run-z/metrics", headers={"If-None-Match": tag})
    assert again.status_code == 200
    assert again.json()["run"] == "run-z"


def test_the_client(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    with Client("http://evalsvc", transport=app.transport) as client:
        client.rename_run("run-a", "run-z")
        with pytest.raises(WrongState):
            client.delete_run("run-z")
        assert client.delete_run("run-z", cancel=True).evaluations == 1
        assert client.runs() == []
