"""Asking for evaluations, following them, stopping and retrying them."""

from pathlib import Path

import pytest
from app_in_process import App, refused

from evalsvc.coordinator import LiveTask
from evalsvc.shard import ShardError


@pytest.fixture
def posted(app: App, weights: Path) -> int:
    """Evaluation 1 waits."""
    number: int = app.post(weights, suites=["loss"]).json()["evaluations"][0]["id"]
    return number


def test_asking_again_gives_the_one_that_is_not_over(app: App, posted: int) -> None:
    body = {"checkpoint": 1, "suite": "loss"}
    again = app.http.post("/v1/evaluations", json=body)
    assert (again.status_code, again.json()["id"]) == (200, posted)
    app.coordinator.work()
    anew = app.http.post("/v1/evaluations", json=body)
    assert (anew.status_code, anew.json()["id"]) == (201, posted + 1)


def test_progress_while_it_runs(app: App, posted: int) -> None:
    app.coordinator.step()  # the first task is planned: 8 sequences in 2 shards
    app.coordinator.step()  # its first shard is done
    app.coordinator.tasks = {1: LiveTask(done=1, per_second=0.5)}
    first, second = app.http.get(f"/v1/evaluations/{posted}").json()["tasks"]
    assert first["progress"] == {"done": 5, "total": 8, "unit": "sequences", "per_second": 0.5, "seconds_left": 6.0}
    assert first["shards"] == {
        "total": 2,
        "succeeded": 1,
        "running": 0,
        "queued": 1,
        "failed": 0,
        "cancelled": 0,
        "skipped": 0,
        "attempts": 1,
    }
    assert second["progress"] == {"done": 0, "total": None, "unit": None, "per_second": None, "seconds_left": None}


def test_results_when_it_is_over(app: App, posted: int) -> None:
    app.coordinator.work()
    document = app.http.get(f"/v1/evaluations/{posted}").json()
    assert document["state"] == "succeeded"
    assert document["finished_at"] is not None
    task = document["tasks"][0]
    assert [(metric["name"], metric["value"]) for metric in task["metrics"]] == [
        ("loss/text", 1.5),
        ("loss/image", "NaN"),
    ]
    assert task["protocols"] == {task["metrics"][0]["protocol"]: {"limit": 1}}
    assert task["progress"]["done"] == task["progress"]["total"] == 8
    assert task["provenance"]["shards"] == [{"seconds": 1}, {"seconds": 1}]


def test_failure_carries_its_error(app: App, posted: int) -> None:
    app.coordinator.error = ShardError("non_finite", "step 25, layer 3: NaN")
    app.coordinator.work()
    document = app.http.get(f"/v1/evaluations/{posted}").json()
    error = {"code": "non_finite", "message": "step 25, layer 3: NaN"}
    assert (document["state"], document["error"], document["tasks"][0]["error"]) == ("failed", error, error)


def test_retry_of_a_failed_one(app: App, posted: int) -> None:
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    app.coordinator.error = None
    woken = app.coordinator.woken
    response = app.http.post(f"/v1/evaluations/{posted}/retry")
    assert (response.status_code, response.json()["state"]) == (202, "queued")
    assert app.coordinator.woken == woken + 1
    app.coordinator.work()
    assert app.http.get(f"/v1/evaluations/{posted}").json()["state"] == "succeeded"


def test_cancel(app: App, posted: int) -> None:
    response = app.http.post(f"/v1/evaluations/{posted}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert app.http.post(f"/v1/evaluations/{posted}/retry").status_code == 202


def test_retry_of_a_succeeded_one(app: App, posted: int) -> None:
    app.coordinator.work()
    response = app.http.post(f"/v1/evaluations/{posted}/retry")
    refused(response, 409, "wrong_state", "evaluation 1 is succeeded; only what failed or was cancelled is retried")


def test_cancel_of_a_finished_one(app: App, posted: int) -> None:
    app.coordinator.work()
    response = app.http.post(f"/v1/evaluations/{posted}/cancel")
    refused(response, 409, "wrong_state", "evaluation 1 is succeeded; only a queued or running one can be cancelled")


def test_evaluation_of_a_replaced_checkpoint(app: App, posted: int, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    app.post(other, replace=True)
    response = app.http.post("/v1/evaluations", json={"checkpoint": 1, "suite": "loss"})
    refused(response, 409, "wrong_state", "checkpoint 1 was replaced")


def test_unknown_evaluation(app: App) -> None:
    for response in (app.http.get("/v1/evaluations/9"), app.http.post("/v1/evaluations/9/cancel")):
        refused(response, 404, "unknown_name", "there is no evaluation 9")


def test_unknown_checkpoint_and_suite(app: App, posted: int) -> None:
    response = app.http.post("/v1/evaluations", json={"checkpoint": 9, "suite": "loss"})
    refused(response, 404, "unknown_name", "there is no checkpoint 9")
    response = app.http.post("/v1/evaluations", json={"checkpoint": 1, "suite": "lose"})
    refused(response, 404, "unknown_name", "did you mean 'loss'?")
