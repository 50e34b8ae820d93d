"""A checkpoint is deleted over REST, and by the client; runs are in `test_run_changes`."""

from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.client import Client
from evalsvc.errors import Conflict, InvalidRequest

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
    assert response.json() == {
        "checkpoint": 1,
        "run": "run-a",
        "step": 25,
        "variant": "raw",
        "evaluations": 1,
        "values": 2,
        "artifacts": 0,
        "freed_bytes": 0,
    }
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
    for path, status, code, words in [
        ("1?confirm=run-a@25&cancel=perhaps", 422, "invalid_request", "cancel: input should be a valid boolean"),
        ("99?confirm=run-a@25", 404, "unknown_name", "there is no checkpoint 99"),
        ("0?confirm=run-a@25", 422, "invalid_request", "checkpoint_id: input should be greater than or equal to 1"),
        ("99999999999999999999?confirm=a", 422, "invalid_request", "checkpoint_id"),
        ("1%20OR%201=1?confirm=run-a@25", 422, "invalid_request", "checkpoint_id"),
    ]:
        refused(app.http.delete(f"/v1/checkpoints/{path}"), status, code, words)
    assert app.http.get(CHECKPOINT).json()["evaluations"][0]["state"] == "succeeded"


def test_what_waits_is_deleted_only_if_that_is_meant(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    woken = app.coordinator.woken
    refused(
        app.http.delete(CHECKPOINT + "?confirm=run-a@25"),
        409,
        "wrong_state",
        "unfinished evaluations (1)",
        "cancel=true",
    )
    assert app.http.delete(CHECKPOINT + "?confirm=run-a@25:raw&cancel=true").json()["evaluations"] == 1
    assert app.coordinator.woken > woken, "an attempt that runs is told to stop"


def test_the_client(app: App, weights: Path) -> None:
    app.post(weights, step=0, suites=["loss"]).raise_for_status()
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    with Client("http://evalsvc", transport=app.transport) as client:
        with pytest.raises(InvalidRequest, match="give confirm=run-a@0"):
            client.delete_checkpoint(1, confirm="run-a@1")
        with pytest.raises(Conflict, match="is the base of run-a"):
            client.delete_checkpoint(1, confirm="run-a@0")
        assert client.delete_checkpoint(2, confirm="run-a@25").values == 2
        assert [item.step for item in client.run("run-a").checkpoints] == [0]
