"""Suites by name: put, in the folder, shipped."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from app_in_process import App, app_in_process, refused

from evalsvc.api.app import create_app
from evalsvc.config import Settings
from evalsvc.errors import InvalidSuite

GOOD = "tasks:\n  - kind: loss\n    data: /data.jsonl\n"


@pytest.fixture
def with_folder(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Starts the application with these files in the folder of its suites."""
    with ExitStack() as stack:

        def start(**files: str) -> App:
            folder = tmp_path / "suites"
            folder.mkdir()
            for name, text in files.items():
                (folder / f"{name}.yaml").write_text(text)
            return stack.enter_context(app_in_process(tmp_path / "data", suites=str(folder)))

        yield start


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        (GOOD, "application/yaml"),
        (GOOD, "text/plain"),
        ('{"tasks": [{"kind": "loss", "data": "/data.jsonl"}]}', "application/json"),
        ('{\n\t"tasks": [{"kind": "loss", "data": "/data.jsonl"}]}', "application/yaml"),
        ("{tasks: [{kind: loss, data: /data.jsonl}]}", "application/yaml"),
    ],
)
def test_put_as_yaml_or_json(app: App, text: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    first = app.http.put("/v1/suites/mine", content=text, headers=headers)
    assert first.status_code == 201, first.text
    assert app.http.put("/v1/suites/mine", content=text, headers=headers).status_code == 200
    document = app.http.get("/v1/suites/mine").json()
    assert document == first.json()
    assert (document["source"], document["tasks"][0]["data"]) == ("put", "/data.jsonl")


def test_put_comes_before_the_folder_and_the_folder_before_shipped(with_folder: Callable[..., App]) -> None:
    app = with_folder(loss=GOOD, other=GOOD)
    assert app.http.get("/v1/suites/loss").json()["source"] == "folder"
    app.http.put("/v1/suites/other", content=GOOD)
    sources = {suite["name"]: suite["source"] for suite in app.http.get("/v1/suites").json()["suites"]}
    assert (sources["loss"], sources["other"], sources["miniature"]) == ("folder", "put", "shipped")


def test_broken_file_disturbs_no_other(with_folder: Callable[..., App], tmp_path: Path) -> None:
    app = with_folder(broken="tasks: [", good=GOOD)
    suites = {suite["name"]: suite for suite in app.http.get("/v1/suites").json()["suites"]}
    assert suites["broken"]["error"]["code"] == "invalid_suite"
    assert suites["good"]["tasks"] == ["loss"]
    weights = tmp_path / "epoch_1.pt"
    weights.write_bytes(b"weights")
    assert app.post(weights, suites=["good"]).status_code == 201
    refused(app.post(weights, step=50, suites=["broken"]), 422, "invalid_suite", "'broken' is not valid YAML")
    refused(app.http.get("/v1/suites/broken"), 422, "invalid_suite", "'broken' is not valid YAML")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("tasks: [", "invalid_suite", "suite 'mine' is not valid YAML"),
        ("[" * 5000, "invalid_suite", "suite 'mine' is not valid YAML"),
        ("", "invalid_suite", "suite 'mine' is NoneType; it must be a mapping with a list `tasks`"),
        ("taks: []", "invalid_suite", "no key is named 'taks'; did you mean 'tasks'?"),
        ("tasks: []", "invalid_suite", "has no list `tasks`"),
        ("tasks: [{kind: los}]", "unknown_name", "no task is named 'los'; did you mean 'loss'?"),
        ("tasks: [{kind: loss, dta: /a}]", "invalid_suite", "no key is named 'dta'; did you mean 'data'"),
        ("tasks: [{kind: loss, data: a.jsonl}]", "invalid_suite", "'a.jsonl' is relative; give an absolute path"),
        ("name: other\ntasks: [{kind: loss, data: /a}]", "invalid_suite", "calls itself 'other'"),
    ],
)
def test_broken_suite_is_not_put(app: App, text: str, code: str, words: str) -> None:
    status = 404 if code == "unknown_name" else 422
    refused(app.http.put("/v1/suites/mine", content=text), status, code, words)
    refused(app.http.get("/v1/suites/mine"), 404, "unknown_name", "no suite is named 'mine'")


def test_broken_json_is_not_put(app: App) -> None:
    response = app.http.put("/v1/suites/mine", content="{", headers={"Content-Type": "application/json"})
    refused(response, 422, "invalid_suite", "suite 'mine' is not valid JSON")


def test_bad_name(app: App) -> None:
    refused(app.http.put("/v1/suites/my%20suite", content=GOOD), 422, "invalid_request", "'my suite' is not a name")


def test_evaluations_keep_the_suite_they_began_with(app: App, weights: Path) -> None:
    app.http.put("/v1/suites/mine", content=GOOD)
    app.post(weights, suites=["mine"])
    app.http.put("/v1/suites/mine", content=GOOD.replace("/data", "/other"))
    app.coordinator.work()
    assert (
        app.http.get("/v1/evaluations/1").json()["suite"]["digest"] != app.http.get("/v1/suites/mine").json()["digest"]
    )


def test_missing_folder_is_told_before_the_service_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidSuite, match="does not exist; create it or change --suites"):
        create_app(Settings(suites=str(tmp_path / "nowhere")))
