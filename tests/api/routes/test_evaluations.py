"""Asking for evaluations, following them, stopping and retrying them."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from app_in_process import App, refused
from compared_runs import items, put
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.store.tables import Suite


@pytest.fixture
def posted(app: App, weights: Path) -> int:
    """Evaluation 1 waits."""
    return int(app.post(weights, suites=["loss"]).json()["evaluations"][0]["id"])


def test_asking_again_gives_the_one_that_is_not_over(app: App, posted: int) -> None:
    body = {"checkpoint": 1, "suite": "loss"}
    again = app.http.post("/v1/evaluations", json=body)
    assert (again.status_code, again.json()["id"]) == (200, posted)
    app.coordinator.work()
    anew = app.http.post("/v1/evaluations", json=body)
    assert (anew.status_code, anew.json()["id"]) == (201, posted + 1)


def test_retry_and_cancel(app: App, posted: int) -> None:
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    woken = app.coordinator.woken
    for act, state in (("retry", "queued"), ("cancel", "cancelled")):
        response = app.http.post(f"/v1/evaluations/{posted}/{act}")
        assert (response.status_code, response.json()["state"]) == (202, state)
    assert app.coordinator.woken == woken + 2
    refused(app.http.post("/v1/evaluations/9/cancel"), 404, "unknown_name", "there is no evaluation 9")


def test_evaluation_of_a_checkpoint_that_is_not_what_it_was(app: App, posted: int, tmp_path: Path) -> None:
    """Nor is a virtual one whose parents are others now."""
    virtual = app.post("avg(run-a@25)", run="v", step=1).json()["checkpoint"]["id"]
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    app.post(other, replace=True)
    for checkpoint, name, status, code, words in (
        (1, "loss", 409, "wrong_state", "checkpoint 1 was replaced"),
        (virtual, "loss", 409, "wrong_state", "computed from run-a@25, replaced by another file since; post the"),
        (9, "loss", 404, "unknown_name", "there is no checkpoint 9"),
        (3, "lose", 404, "unknown_name", "did you mean 'loss'?"),
    ):
        response = app.http.post("/v1/evaluations", json={"checkpoint": checkpoint, "suite": name})
        refused(response, status, code, words)
    assert app.post("avg(run-a@25)", run="v", step=1, replace=True).status_code == 201


def test_results_per_item_in_columns_for_a_notebook(app: App) -> None:
    put(app.store, "run-a", 0, 1, 0.5)
    whole = app.http.get("/v1/evaluations/1/items").json()
    assert whole == {"evaluation": 1, "state": "succeeded", "items": {"language-0": items(1, 0.5)}}
    table = pd.read_csv(io.StringIO(app.http.get("/v1/evaluations/1/items?format=csv&benchmark=piqa").text))
    rows = [row for row in items(1, 0.5) if row["benchmark"] == "piqa"]
    assert list(table.columns) == ["task", *rows[0]]
    for name in ("benchmark", "index", "acc", "bits"):
        assert list(table[name]) == [row[name] for row in rows]
    assert [json.loads(cell) for cell in table["scores"]] == [row["scores"] for row in rows]
    enter(app.store, submission(), suite())
    evaluate_whole(app.store, metric(1.0), items=[{"index": 0, "text": 'a "b",\nc'}, {"index": 1, "nll": "NaN"}])
    text = app.http.get("/v1/evaluations/2/items?format=csv").text
    assert text == 'task,index,text,nll\nloss-0,0,"a ""b"",\nc",\nloss-0,1,,NaN\n', "a missing key is an empty cell"


def test_the_suite_as_it_was_evaluated_whatever_the_name_stands_for_now(app: App, weights: Path) -> None:
    task = {"kind": "loss", "name": "own", "data": "datasets:größe #b.jsonl", "limit": 7}
    document = app.http.put("/v1/suites/mine", json={"description": "one", "tasks": [task]}).json()
    app.post(weights, suites=["mine"]).raise_for_status()
    digest, tasks = document["digest"], document["tasks"]
    found = {"evaluation": 1, "name": "mine", "tasks": tasks, "digest": digest, "current_digest": digest}
    with Client("http://evalsvc", transport=app.transport) as client:
        assert client.evaluated_suite(1).model_dump() == found
        other = client.put_suite("mine", "tasks: [{kind: loss, data: 'datasets:other.jsonl'}]").digest
        app.coordinator.work()
        assert client.evaluated_suite(1).model_dump() == {**found, "current_digest": other}
        with app.store.transaction() as session:  # the task of a package that is no longer installed
            session.get_one(Suite, "mine").content = {"tasks": [{"kind": "gone"}]}
        assert client.evaluated_suite(1).current_digest is None
        client.delete_suite("mine")
        assert client.evaluated_suite(1).model_dump() == {**found, "current_digest": None}
    answer = app.http.get("/v1/evaluations/1/suite?format=yaml")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert answer.text.startswith(f"# Suite mine as evaluation 1 began with it, digest {digest}\n")
    assert app.http.put("/v1/suites/again", content=answer.content).json()["digest"] == digest
