"""Runs and checkpoints are deleted, and runs renamed, over REST and by the client."""

from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.client import Client
from evalsvc.errors import Conflict, InvalidRequest, WrongState
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.tables import Artifact

CHECKPOINT = "/v1/checkpoints/1"


def post_two(app: App, weights: Path) -> None:
    for step in (25, 50):
        app.post(weights, step=step, suites=["loss"], spool="link").raise_for_status()
    app.coordinator.work()


def test_the_checkpoint_goes_with_its_files(app: App, weights: Path) -> None:
    post_two(app, weights)
    spool = app.settings.data_path / "spool"
    assert (spool / "1").is_dir()
    response = app.http.delete(CHECKPOINT, params={"confirm": "run-a@25"})
    counts = {"evaluations": 1, "values": 2, "artifacts": 0, "freed_bytes": 0}
    assert response.json() == {"checkpoint": 1, "run": "run-a", "step": 25, "variant": "raw", **counts}
    assert not (spool / "1").exists()
    assert (spool / "2").is_dir()
    assert weights.exists()
    refused(app.http.get(CHECKPOINT), 404, "unknown_name", "there is no checkpoint 1")
    refused(app.http.get("/v1/evaluations/1"), 404, "unknown_name")
    assert app.http.get("/v1/runs/run-a/metrics").json()["series"][0]["x"] == [50]
    again = app.post(weights, step=25, suites=["loss"])
    assert (again.status_code, again.json()["checkpoint"]["id"]) == (201, 3)


def test_what_is_not_confirmed_stays(app: App, weights: Path) -> None:
    """Whatever is sent in the place of a name or an id."""
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    for query in ("", "?confirm=", "?confirm=1", "?confirm=run-a", "?confirm=run-a@50", "?confirm=run-a@25:ema"):
        words = "confirm is missing" if not query else "checkpoint 1 is run-a@25; to delete, give confirm=run-a@25"
        refused(app.http.delete(CHECKPOINT + query), 422, "invalid_request", words)
    for query in ("?confirm=run-a@025", "?confirm=run-a@25%0d%0a", "?confirm=" + "a" * 4000, "?confirm=RUN-A@25"):
        assert len(refused(app.http.delete(CHECKPOINT + query), 422, "invalid_request", "confirm is '")) < 400
    refused(app.http.delete("/v1/checkpoints/99?confirm=run-a@25"), 404, "unknown_name", "there is no checkpoint 99")
    for number in ("0", "99999999999999999999", "1%20OR%201=1"):
        answer = app.http.delete(f"/v1/checkpoints/{number}?confirm=run-a@25")
        refused(answer, 422, "invalid_request", "checkpoint_id: input should be")
    assert app.http.get(CHECKPOINT).json()["evaluations"][0]["state"] == "succeeded"


def test_what_waits_is_deleted_only_if_that_is_meant(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    woken = app.coordinator.woken
    words = ("unfinished evaluations (1)", "cancel=true")
    refused(app.http.delete(CHECKPOINT + "?confirm=run-a@25"), 409, "wrong_state", *words)
    assert app.http.delete(CHECKPOINT + "?confirm=run-a@25:raw&cancel=true").json()["evaluations"] == 1
    assert app.coordinator.woken > woken, "an attempt that runs is told to stop"


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
    counts = {"checkpoints": 2, "evaluations": 2, "values": 2, "artifacts": 2, "freed_bytes": 3}
    assert response.json() == {"run": "run-a", **counts}
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
    for step in (0, 25):
        app.post(weights, step=step, suites=["loss"]).raise_for_status()
    with Client("http://evalsvc", transport=app.transport) as client:
        client.rename_run("run-a", "run-z")
        with pytest.raises(WrongState):
            client.delete_run("run-z")
        app.coordinator.work()
        with pytest.raises(InvalidRequest, match="give confirm=run-z@0"):
            client.delete_checkpoint(1, confirm="run-a@1")
        with pytest.raises(Conflict, match="is the base of run-z"):
            client.delete_checkpoint(1, confirm="run-z@0")
        assert client.delete_checkpoint(2, confirm="run-z@25").values == 2
        assert [item.step for item in client.run("run-z").checkpoints] == [0]
        client.submit("run-z", 50, str(weights), suites=["loss"])
        assert client.delete_run("run-z", cancel=True).evaluations == 2
        assert client.runs() == []
