"""Two checkpoints, and two runs, compared by the service: the numbers of the files, and what is refused."""

import json
from typing import Any

import pytest
from app_in_process import App, refused
from compared_runs import items, put
from gate_documents import read_document
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.compare.comparison import Options, compare_results
from evalsvc.compare.result import Result
from evalsvc.files.artifacts import artifact_path
from evalsvc.files.items import LARGE, keep_items, pack_items
from evalsvc.store.history.writing import touch_history
from evalsvc.store.lookup import find_run
from evalsvc.store.tables import Task


@pytest.fixture
def files(app: App) -> dict[str, Result]:
    """Two checkpoints in the service, and what the files of their results would be."""
    documents = {"run-a@0": put(app.store, "run-a", 0, 1, 0.7), "run-b@25": put(app.store, "run-b", 25, 2, 0.4)}
    return {name: read_document(name, json.loads(json.dumps(found))) for name, found in documents.items()}


def compare(app: App, path: str = "", **query: Any) -> Any:
    response = app.http.get(f"/v1/compare{path}", params={"a": "run-a@0", "b": "run-b@25", **query})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_numbers_are_those_of_the_files(app: App, files: dict[str, Result]) -> None:
    asked: list[tuple[dict[str, Any], Options]] = [
        ({}, Options()),
        ({"metric": ["*/acc"], "flipped": 5, "level": 0.9}, Options(("*/acc",), level=0.9, flipped=5)),
        ({"task": "language-0", "family": "holm"}, Options(tasks=("language-0",), family="holm")),
    ]
    for query, options in asked:
        found = compare(app, **query)
        assert found == compare_results(files["run-a@0"], files["run-b@25"], options).model_dump()
        assert {one["basis"] for one in found["contrasts"]} == {"paired"}


@pytest.mark.parametrize("address", ["/v1/compare?a=run-a@0&b=run-b@25", "/v1/compare/curves?a=run-a&b=run-b"])
def test_a_comparison_is_kept_until_one_of_the_runs_changes(app: App, address: str) -> None:
    for run in ("run-a", "run-b"):
        for step in (0, 25):
            put(app.store, run, step, step, 0.7)
    for run in ("run-a", "run-b"):
        first = app.http.get(address)
        tag = first.headers["etag"]
        assert app.http.get(address).content == first.content
        assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 304
        put(app.store, run, 0 if run == "run-a" else 25, 9, 0.2, limit=2)
        assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_large_items_are_read_from_their_file_and_missed_aloud(app: App) -> None:
    for run, seed in (("run-a", 1), ("run-b", 2)):
        put(app.store, run, 0, seed, 0.5, n=2_000)
    before = compare(app, b="run-b@0")
    folder = app.settings.items_path
    with app.store.transaction() as session:
        for number, seed in ((1, 1), (2, 2)):
            task = session.get_one(Task, number)
            assert task.items == pack_items(items(seed, 0.5, 2_000))
            assert len(task.items) > LARGE
            task.items, task.items_sha256 = None, str(keep_items(folder, task.items))
            touch_history(session, number)
        digest = str(session.get_one(Task, 2).items_sha256)
    assert compare(app, b="run-b@0") == before
    artifact_path(folder, digest).write_bytes(b"torn")
    with app.store.transaction() as session:
        touch_history(session, 2)  # or the answer is the one that was kept
    words = ("item of task 'language-0' of evaluation 2 are lost", "again (POST /v1/evaluations)")
    refused(app.http.get("/v1/compare?a=run-a@0&b=run-b@0"), 410, "items_lost", *words)
    assert app.http.get("/v1/runs/run-b/metrics").status_code == 200


def test_other_protocols(app: App, files: dict[str, Result]) -> None:
    put(app.store, "run-c", 0, 3, 0.5, limit=2)
    words = ("arc/acc, arc/bits_per_byte", "limit 1 → 2", "--force")
    refused(app.http.get("/v1/compare?a=run-a@0&b=run-c@0"), 409, "not_comparable", *words)
    forced = compare(app, b="run-c@0", force="true")["contrasts"]
    assert {(one["basis"], one["answers"]) for one in forced} == {("unpaired", None)}
    assert forced[0]["differing"] == {"limit": {"a": 1, "b": 2}}


def test_two_runs_at_the_steps_that_both_have_and_a_run_against_its_base(app: App) -> None:
    for step, a, b in ((0, 0.9, 0.2), (10, 0.8, 0.4), (20, 0.5, 0.52), (40, 0.5, 0.5)):
        put(app.store, "run-a", step, 1, a)
        put(app.store, "run-b", step, 2, b)
    put(app.store, "run-a", 30, 1, 0.5)
    (curve,) = compare(app, "/curves", a="run-a", b="run-b", metric="arc/acc")["curves"]
    assert curve["x"] == [0, 10, 20, 40]
    assert curve["verdict"] == ["worse", "worse", "indistinguishable", "indistinguishable"]
    assert curve["basis"] == ["paired"] * 4
    assert (curve["first_indistinguishable"], curve["indistinguishable_from"]) == (20, 20)
    found = compare(app, "/curves", a="run-a", b=[], metric="*/acc", band="simultaneous")
    assert (found["a"], found["b"], found["band"]) == ("run-a@0", "run-a", "simultaneous")
    assert [curve["x"] for curve in found["curves"]] == [[10, 20, 30, 40]] * 2
    assert found["curves"][0]["step_level"] == pytest.approx(1 - 0.05 / 4)
    with app.store.transaction() as session:
        find_run(session, "run-b").base = {"run": "run-a", "step": 0, "variant": "raw"}
    found = compare(app, "/curves", a="run-b", b=[])
    assert (found["a"], found["curves"][0]["x"]) == ("run-a@0", [0, 10, 20, 40])


def test_a_task_whose_name_two_suites_share_is_still_paired(app: App, files: dict[str, Result]) -> None:
    """On one side the task is called `<suite>/<task>`; its items were then looked for on the other side."""
    alone = compare(app)
    put(app.store, "run-b", 25, 9, 0.5, limit=2)
    found = [one for one in compare(app)["contrasts"] if one["a"] and one["b"]]
    expected = [(one["metric"], one["stderr"], "paired") for one in alone["contrasts"]]
    assert [(one["metric"], one["stderr"], one["basis"]) for one in found] == expected


def test_one_other_protocol_does_not_hide_the_rest(app: App) -> None:
    for run, limit in (("run-a", 1), ("run-b", 2)):
        path = f"/{run}.pt"
        enter(app.store, submission(0, run=run, uri=path, path=path), suite())
        evaluate_whole(app.store, metric(1.0), metric(1.0, "loss/image", limit=limit))
    found = compare(app, b="run-b@0")["contrasts"]
    assert [one["verdict"] for one in found] == ["indistinguishable", "other_protocol"]


def named(app: App, name: str) -> Any:
    response = app.http.get("/v1/named", params={"name": name})
    assert response.status_code == 200, response.text
    return response.json()


def test_checkpoints_are_named_by_their_values(app: App) -> None:
    """The best of several is partly luck: the steps that are not worse beyond noise are named with it."""
    for step, seed, right in ((0, 1, 0.1), (25, 2, 0.55), (50, 3, 0.56), (75, 2, 0.55)):
        put(app.store, "run-a", step, seed, right, n=200)
    best = named(app, "run-a@best:arc/acc")
    assert (best["metric"], best["title"], best["of"]) == ("arc/acc", "Arc accuracy", 4)
    assert best["step"] != 0
    level = 1 - 0.05 / 3
    for step in {0, 25, 50, 75} - {best["step"]}:
        query = {"a": f"run-a@{best['step']}", "b": f"run-a@{step}", "metric": "arc/acc", "level": level}
        [row] = app.http.get("/v1/compare", params=query).json()["contrasts"]
        assert (row["verdict"] != "worse") == (step in best["within_noise"])
    assert 0 not in best["within_noise"]
    [run] = app.http.get("/v1/headlines?run=run-a&metric=arc/acc&points=9&strip=true").json()["runs"]
    assert run["series"][0]["near_best"] == best["within_noise"]
    assert named(app, "run-a@best")["metric"] == app.http.get("/v1/runs/run-a/headline").json()["metrics"][0]
    assert (named(app, "run-a@newest")["step"], named(app, "run-a@base")["step"]) == (75, 0)
    compared = compare(app, a="run-a@best:arc/acc", b="run-a@base")
    assert (compared["a"], compared["b"]) == (f"run-a@{best['step']}", "run-a@0")
    assert compared["level"] == pytest.approx(level)


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("run-a@best:arc/ac", 404, "unknown_name", "arc/acc"),
        ("run-a@first", 422, "invalid_request", "RUN@newest"),
        ("run-a@best:ema", 404, "unknown_name", "ema"),
        ("run-a@newest:ema", 404, "unknown_name", "no checkpoint has been evaluated"),
        ("run-b@best", 404, "unknown_name", "run-a"),
    ],
)
def test_a_name_that_stands_for_no_checkpoint(app: App, name: str, status: int, code: str, words: str) -> None:
    put(app.store, "run-a", 0, 1, 0.7)
    refused(app.http.get("/v1/named", params={"name": name}), status, code, words)
