"""Suites by name: put, in the folder, shipped."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile_suites
import pytest
from app_in_process import App, refused

from evalsvc.api.routes import suites
from evalsvc.client import Client
from evalsvc.store.suites import kept_suite

GOOD = "tasks:\n  - kind: loss\n    data: datasets:data.jsonl\n"


@pytest.fixture
def with_folder(start_app: Callable[..., App], tmp_path: Path) -> Callable[..., App]:
    """Starts the application with these files in the folder of its suites."""

    def start(**files: str) -> App:
        folder = tmp_path / "suites"
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return start_app(suites=str(folder))

    return start


def test_put_as_yaml_or_json(app: App) -> None:
    first = app.http.put("/v1/suites/mine", content=GOOD, headers={"Content-Type": "text/plain"})
    assert (first.status_code, first.json()["source"]) == (201, "put")
    for text, content_type in (
        (GOOD, "text/plain"),
        ('{"tasks": [{"kind": "loss", "data": "datasets:data.jsonl"}]}', "application/json"),
        ('{\n\t"tasks": [{"kind": "loss", "data": "datasets:data.jsonl"}]}', "application/yaml"),
        ("{tasks: [{kind: loss, data: 'datasets:data.jsonl'}]}", "application/yaml"),
    ):
        again = app.http.put("/v1/suites/mine", content=text, headers={"Content-Type": content_type})
        assert again.status_code == 200, again.text
        assert app.http.get("/v1/suites/mine").json() == again.json() == first.json()


def test_put_comes_before_the_folder_and_the_folder_before_shipped(with_folder: Callable[..., App]) -> None:
    """A shipped name is free where the operator has given it to another suite already."""
    app = with_folder(loss=GOOD, other=GOOD)
    found = app.http.get("/v1/suites/loss").json()
    assert (found["source"], found["shadows"]) == ("folder", "shipped")
    app.http.put("/v1/suites/other", content=GOOD)
    sources = {suite["name"]: suite["source"] for suite in app.http.get("/v1/suites").json()["suites"]}
    assert (sources["loss"], sources["other"], sources["miniature"]) == ("folder", "put", "shipped")
    assert app.http.put("/v1/suites/loss", content=GOOD).status_code == 201
    assert app.http.delete("/v1/suites/loss").json()["uncovered"] == "folder"
    assert app.http.get("/v1/suites/loss").json()["source"] == "folder"
    words = ("is a file in the service's folder", "remove the file")
    refused(app.http.delete("/v1/suites/loss"), 409, "wrong_state", *words)
    refused(app.http.delete("/v1/suites/miniature"), 409, "wrong_state", "'miniature' comes with evalsvc")


def test_a_shipped_suite_is_replaced_only_where_that_is_meant(app: App) -> None:
    """Everybody's `loss` became another suite, and their histories two series, without a word."""
    before = app.http.get("/v1/suites/loss").json()
    words = ("'loss' is a suite that comes with evalsvc", "such as my-loss", "?replace_shipped=true")
    refused(app.http.put("/v1/suites/loss", content=GOOD), 409, "conflict", *words)
    assert app.http.get("/v1/suites/loss").json() == before
    assert app.http.put("/v1/suites/my-loss", content=GOOD).status_code == 201
    with Client("http://evalsvc", transport=app.transport) as client:
        assert client.put_suite("loss", GOOD, replace_shipped=True).shadows == "shipped"
        assert client.suite("loss").source == "put"
        [listed] = [suite for suite in client.suites() if suite.name == "loss"]
        assert listed.shadows == "shipped"
        assert client.delete_suite("loss").uncovered == "shipped"
    assert app.http.get("/v1/suites/loss").json() == before


def test_a_deleted_suite_is_gone_and_evaluations_keep_it(app: App, weights: Path) -> None:
    digest = app.http.put("/v1/suites/mine", content=GOOD).json()["digest"]
    app.post(weights, suites=["mine"]).raise_for_status()
    app.http.put("/v1/suites/mine", content=GOOD.replace("data.jsonl", "other.jsonl"))
    app.coordinator.work()
    evaluation = app.http.get("/v1/evaluations/1").json()
    assert (evaluation["state"], evaluation["suite"]["digest"]) == ("succeeded", digest)
    app.http.put("/v1/suites/mine", content=GOOD)
    assert app.http.delete("/v1/suites/mine").json() == {"name": "mine", "digest": digest, "uncovered": None}
    for method in ("GET", "DELETE"):
        refused(app.http.request(method, "/v1/suites/mine"), 404, "unknown_name", "no suite is named 'mine'")
    assert app.http.put("/v1/suites/mine", content=GOOD).status_code == 201


def test_a_suite_that_plans_name_stays(app: App) -> None:
    """Each later post of such a run would have failed."""
    app.http.put("/v1/suites/mine", content=GOOD)
    for run in ("run-b", "run-a"):
        plan = {"suites": [{"suite": "loss", "every": 1}, {"suite": "mine", "every": 500}]}
        app.http.put(f"/v1/runs/{run}/plan", json=plan).raise_for_status()
    words = ("suite 'mine' is in the plans of run-a, run-b", "PUT /v1/runs/run-a/plan")
    refused(app.http.delete("/v1/suites/mine"), 409, "conflict", *words)
    for run in ("run-b", "run-a"):
        app.http.put(f"/v1/runs/{run}/plan", json={"suites": []}).raise_for_status()
    assert app.http.delete("/v1/suites/mine").status_code == 200


def test_broken_file_disturbs_no_other(with_folder: Callable[..., App], weights: Path) -> None:
    app = with_folder(broken="tasks: [", good=GOOD)
    suites = {suite["name"]: suite for suite in app.http.get("/v1/suites").json()["suites"]}
    assert suites["broken"]["error"]["code"] == "invalid_suite"
    assert suites["good"]["tasks"] == ["loss"]
    refused(app.http.get("/v1/suites/broken"), 422, "invalid_suite", "'broken' is not valid YAML")


def test_broken_suite_is_not_put(app: App) -> None:
    nul = json.dumps({"tasks": [{"kind": "completions", "prompts": ["a\0b"]}]})
    for text, words in {
        "tasks: [": "suite 'mine' is not valid YAML",
        "tasks: [{kind: loss, data: /etc/shadow}]": "outside the allowed folders",
        # PostgreSQL refuses such a text in the middle of a transaction, which was a bug of the service to who posted.
        nul: "has a NUL or an unpaired surrogate",
        '{"tasks": [], "a": %s}' % ('{"a":' * 100 + "1" + "}" * 100): "nested more than 64 levels",
        '{"tasks": [], "a": %s}' % ('{"a":' * 5000 + "1" + "}" * 5000): "nested more than 64 levels",
    }.items():
        refused(app.http.put("/v1/suites/mine", content=text), 422, "invalid_suite", words)
    response = app.http.put("/v1/suites/mine", content="{", headers={"Content-Type": "application/json"})
    refused(response, 422, "invalid_suite", "suite 'mine' is not valid JSON")
    response = app.http.put("/v1/suites/mine", content="tasks: [{kind: los}]")
    refused(response, 404, "unknown_name", "no task is named 'los'; did you mean 'loss'?")
    refused(app.http.get("/v1/suites/mine"), 404, "unknown_name", "no suite is named 'mine'")
    for name in ("my%20suite", "..", "%2e%2e%2floss", "a%00b", "a%0d%0ab", "-a", "a" * 129):
        for method in ("GET", "PUT", "DELETE"):
            response = app.http.request(method, f"/v1/suites/{name}", content=GOOD if method == "PUT" else None)
            assert response.status_code in (404, 405, 422), response.text


def test_a_suite_is_found_without_reading_the_others(app: App, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may submit may put thousands of half a megabyte, and every post would have read them all."""
    for name in ("mine", "other", "third"):
        app.http.put(f"/v1/suites/{name}", content=GOOD)
    read = []
    monkeypatch.setattr(suites, "kept_suite", lambda session, name: read.append(name) or kept_suite(session, name))
    assert app.post(weights, suites=["mine"]).status_code == 201
    refused(app.post(weights, step=50, suites=["mien"]), 404, "unknown_name", "did you mean 'mine'?")
    assert read == ["mine"]
    assert {"mine", "other", "third"} <= {suite["name"] for suite in app.http.get("/v1/suites").json()["suites"]}


@pytest.mark.usefixtures("child_process")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=pytest.mark.long)])
def test_suites_that_are_made_to_cost(count: int) -> None:
    """Whatever the parameters of whichever tasks: an answer within a second and 100 MB, of a process that has no room
    for more. `samples: 100000000` once took 7.6 GB, and could not be stopped."""
    command = [sys.executable, hostile_suites.__file__, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["suites"] == count
    assert found["statuses"]["200"] > count / 20, "some are kept, or nothing is shown"
