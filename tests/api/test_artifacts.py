"""Artifacts by REST: what there is, by evaluation and by run, and the content."""

from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.artifacts import artifact_path, keep_content
from evalsvc.store.tables import Artifact, Task


@pytest.fixture
def left(app: App, weights: Path) -> int:
    """The id of an artifact of a finished evaluation."""
    app.post(weights, suites=["loss"])
    app.coordinator.work()
    sha256 = keep_content(app.settings.artifacts_path, b"pixels")
    with app.coordinator.store.transaction() as session:
        task = session.get_one(Task, 1)
        details = {"prompt": "a seven"}
        artifact = Artifact(
            task_id=task.id,
            kind="sample",
            name="0.png",
            media_type="image/png",
            sha256=sha256,
            size=6,
            details=details,
        )
        session.add(artifact)
        session.flush()
        return artifact.id


def test_an_evaluation_lists_what_it_left(app: App, left: int) -> None:
    [artifact] = app.http.get("/v1/evaluations/1/artifacts").json()["artifacts"]
    assert artifact["id"] == left
    assert artifact["name"] == "0.png"
    assert artifact["details"] == {"prompt": "a seven"}


def test_a_run_lists_them_by_kind_and_step(app: App, left: int) -> None:
    name, step = "run", 1
    found = app.http.get("/v1/runs").json()["runs"][0]
    name, step = found["name"], found["last_step"]
    path = f"/v1/runs/{name}/artifacts"
    assert [item["id"] for item in app.http.get(path).json()["artifacts"]] == [left]
    assert [item["step"] for item in app.http.get(path, params={"kind": "sample"}).json()["artifacts"]] == [step]
    assert app.http.get(path, params={"kind": "grid"}).json()["artifacts"] == []
    assert app.http.get(path, params={"step": step + 1}).json()["artifacts"] == []


def test_the_content_comes_with_its_type_and_never_changes(app: App, left: int) -> None:
    answer = app.http.get(f"/v1/artifacts/{left}")
    assert (answer.content, answer.headers["content-type"]) == (b"pixels", "image/png")
    assert "immutable" in answer.headers["cache-control"]


def test_unknown_and_deleted_artifacts_are_named(app: App, left: int) -> None:
    refused(app.http.get("/v1/artifacts/99"), 404, "unknown_name", "there is no artifact 99")
    refused(app.http.get("/v1/evaluations/99/artifacts"), 404, "unknown_name", "there is no evaluation 99")
    artifact = app.http.get("/v1/evaluations/1/artifacts").json()["artifacts"][0]
    artifact_path(app.settings.artifacts_path, artifact["sha256"]).unlink()
    refused(app.http.get(f"/v1/artifacts/{left}"), 404, "unknown_name", "no longer in")
