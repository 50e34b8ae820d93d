"""Asking for evaluations, following them, stopping and retrying them."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from app_in_process import App, refused
from compared_runs import items, put
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.messages import ShardError
from evalsvc.store.tables import Suite
from evalsvc.store.views import LiveTask


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
    task, _ = app.http.get(f"/v1/evaluations/{posted}").json()["tasks"]
    assert task["progress"] == {"done": 5, "total": 8, "unit": "sequences", "per_second": 0.5, "seconds_left": 6.0}


def test_retry_and_cancel(app: App, posted: int) -> None:
    app.coordinator.error = ShardError("out_of_memory", "no memory")
    app.coordinator.work()
    woken = app.coordinator.woken
    response = app.http.post(f"/v1/evaluations/{posted}/retry")
    assert (response.status_code, response.json()["state"]) == (202, "queued")
    assert app.coordinator.woken == woken + 1
    response = app.http.post(f"/v1/evaluations/{posted}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")


def test_evaluation_of_a_replaced_checkpoint(app: App, posted: int, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    app.post(other, replace=True)
    response = app.http.post("/v1/evaluations", json={"checkpoint": 1, "suite": "loss"})
    refused(response, 409, "wrong_state", "checkpoint 1 was replaced")


def test_evaluation_of_a_virtual_checkpoint_needs_the_parents_of_then(app: App, weights: Path, tmp_path: Path) -> None:
    app.post(weights, step=0)
    number = app.post("avg(run-a@0)", run="v", step=1).json()["checkpoint"]["id"]
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    app.post(other, step=0, replace=True)
    response = app.http.post("/v1/evaluations", json={"checkpoint": number, "suite": "loss"})
    refused(response, 409, "wrong_state", "computed from run-a@0, replaced by another file since; post the")
    assert app.post("avg(run-a@0)", run="v", step=1, replace=True).status_code == 201


def test_unknown_names(app: App, posted: int) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/suite")):
        response = app.http.request(method, f"/v1/evaluations/9{path}")
        refused(response, 404, "unknown_name", "there is no evaluation 9")
    response = app.http.post("/v1/evaluations", json={"checkpoint": 9, "suite": "loss"})
    refused(response, 404, "unknown_name", "there is no checkpoint 9")
    response = app.http.post("/v1/evaluations", json={"checkpoint": 1, "suite": "lose"})
    refused(response, 404, "unknown_name", "did you mean 'loss'?")


class TestItems:
    """Results per item, in columns for a notebook."""

    @pytest.fixture
    def evaluation(self, app: App) -> int:
        put(app.store, "run-a", 0, 1, 0.5)
        return 1

    def test_csv(self, app: App, evaluation: int) -> None:
        response = app.http.get(f"/v1/evaluations/{evaluation}/items", params={"format": "csv", "benchmark": "piqa"})
        whole = app.http.get(f"/v1/evaluations/{evaluation}/items").json()
        assert whole == {"evaluation": 1, "state": "succeeded", "items": {"language-0": items(1, 0.5)}}
        table = pd.read_csv(io.StringIO(response.text))
        rows = [row for row in items(1, 0.5) if row["benchmark"] == "piqa"]
        assert list(table.columns) == ["task", *rows[0]]
        for name in ("benchmark", "index", "acc", "bits"):
            assert list(table[name]) == [row[name] for row in rows]
        assert [json.loads(cell) for cell in table["scores"]] == [row["scores"] for row in rows]

    def test_what_is_not_there(self, app: App, evaluation: int) -> None:
        cases = [
            ({"columns": "bit"}, "no column of the items of evaluation 1 is named 'bit'; did you mean 'bits'"),
            ({"benchmark": "pica"}, "no benchmark of evaluation 1 is named 'pica'; did you mean 'piqa'"),
            ({"task": "language-1"}, "no task of evaluation 1 is named 'language-1'; did you mean 'language-0'"),
        ]
        for query, words in cases:
            response = app.http.get(f"/v1/evaluations/{evaluation}/items", params=query)
            refused(response, 404, "unknown_name", words)


def test_a_missing_key_is_an_empty_cell(app: App, weights: Path) -> None:
    enter(app.store, submission(), suite())
    evaluate_whole(app.store, metric(1.0), items=[{"index": 0, "text": 'a "b",\nc'}, {"index": 1, "nll": "NaN"}])
    text = app.http.get("/v1/evaluations/1/items?format=csv").text
    assert text == 'task,index,text,nll\nloss-0,0,"a ""b"",\nc",\nloss-0,1,,NaN\n'


class TestTheSuiteAsItWasEvaluated:
    SUITE = {  # noqa: RUF012
        "description": "one",
        "tasks": [{"kind": "loss", "name": "own", "data": "datasets:größe #b.jsonl", "limit": 7}],
    }

    @pytest.fixture
    def first(self, app: App, weights: Path) -> dict[str, Any]:
        """The suite `mine` when evaluation 1 began."""
        document: dict[str, Any] = app.http.put("/v1/suites/mine", json=self.SUITE).json()
        app.post(weights, suites=["mine"]).raise_for_status()
        return document

    def test_whatever_the_name_stands_for_now(self, app: App, first: dict[str, Any]) -> None:
        digest, tasks = first["digest"], first["tasks"]
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

    def test_as_yaml_it_is_the_same_suite(self, app: App, first: dict[str, Any]) -> None:
        app.http.delete("/v1/suites/mine").raise_for_status()
        answer = app.http.get("/v1/evaluations/1/suite", params={"format": "yaml"})
        assert answer.headers["content-type"].startswith("application/yaml")
        assert answer.text.startswith(f"# Suite mine as evaluation 1 began with it, digest {first['digest']}\n")
        again = app.http.put("/v1/suites/again", content=answer.content)
        assert again.json()["digest"] == first["digest"]
