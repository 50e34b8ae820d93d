"""Suites by name: put, in the folder, shipped."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import hostile_suites
import psutil
import pytest
from app_in_process import App, app_in_process, refused

from evalsvc.api.app import create_app
from evalsvc.api.routes import suites
from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import InvalidSuite
from evalsvc.store.suites import kept_suite

GOOD = "tasks:\n  - kind: loss\n    data: datasets:data.jsonl\n"


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
        ('{"tasks": [{"kind": "loss", "data": "datasets:data.jsonl"}]}', "application/json"),
        ('{\n\t"tasks": [{"kind": "loss", "data": "datasets:data.jsonl"}]}', "application/yaml"),
        ("{tasks: [{kind: loss, data: 'datasets:data.jsonl'}]}", "application/yaml"),
    ],
)
def test_put_as_yaml_or_json(app: App, text: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    first = app.http.put("/v1/suites/mine", content=text, headers=headers)
    assert first.status_code == 201, first.text
    assert app.http.put("/v1/suites/mine", content=text, headers=headers).status_code == 200
    document = app.http.get("/v1/suites/mine").json()
    assert document == first.json()
    assert (document["source"], document["tasks"][0]["data"]) == ("put", "datasets:data.jsonl")


def test_put_comes_before_the_folder_and_the_folder_before_shipped(with_folder: Callable[..., App]) -> None:
    app = with_folder(loss=GOOD, other=GOOD)
    assert app.http.get("/v1/suites/loss").json()["source"] == "folder"
    app.http.put("/v1/suites/other", content=GOOD)
    sources = {suite["name"]: suite["source"] for suite in app.http.get("/v1/suites").json()["suites"]}
    assert (sources["loss"], sources["other"], sources["miniature"]) == ("folder", "put", "shipped")


def test_a_shipped_suite_is_replaced_only_where_that_is_meant(app: App) -> None:
    """Everybody's `loss` became another suite, and their histories two series, without a word."""
    before = app.http.get("/v1/suites/loss").json()
    words = (
        "'loss' is a suite that comes with evalsvc",
        "under another name, such as my-loss",
        "?replace_shipped=true",
    )
    refused(app.http.put("/v1/suites/loss", content=GOOD), 409, "conflict", *words)
    assert app.http.get("/v1/suites/loss").json() == before
    assert app.http.put("/v1/suites/my-loss", content=GOOD).status_code == 201
    with Client("http://evalsvc", transport=app.transport) as client:
        client.put_suite("loss", GOOD, replace_shipped=True)
    assert app.http.get("/v1/suites/loss").json()["source"] == "put"


def test_a_suite_of_the_folder_may_have_a_shipped_name(with_folder: Callable[..., App]) -> None:
    """The operator has given it to another one already."""
    assert with_folder(loss=GOOD).http.put("/v1/suites/loss", content=GOOD).status_code == 201


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
    app.http.put("/v1/suites/mine", content=GOOD.replace("data.jsonl", "other.jsonl"))
    app.coordinator.work()
    assert (
        app.http.get("/v1/evaluations/1").json()["suite"]["digest"] != app.http.get("/v1/suites/mine").json()["digest"]
    )


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


def test_missing_folder_is_told_before_the_service_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidSuite, match="does not exist; create it or change --suites"):
        create_app(Settings(suites=str(tmp_path / "nowhere")))


# What a suite may not do. It is data of whoever may post, and code, files and time of the service are not theirs.

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijkl")
)

BOMBS = {
    "aliases": (LAUGHS, "it has more than 10,000 values, those that aliases stand for counted each time"),
    "merges": (
        "a: &a {k: 1}\n" + "".join(f"{n}: &{n} {{<<: [*{b}, *{b}, *{b}]}}\n" for b, n in pairwise("abcdefghijklmn")),
        "it has more than 10,000 values",
    ),
    "itself": ("tasks: &a [*a]", "the value in line 1 holds itself"),
    "deep": ("tasks: " + "[" * 100_000, "it is nested deeper than 64"),
    "deep mappings": ("".join(" " * depth + "a:\n" for depth in range(300)), "it is nested deeper than 64"),
    "long": ("[" + "1," * 60_000 + "1]", "it has more than 10,000 values"),
    "number": ("tasks: " + "9" * 100_000, "the number in line 1 has 100,000 digits"),
    "base 60": ("tasks: 1" + ":59" * 40_000, "the number in line 1 has 120,001 digits"),
    "date": ("tasks: 2001-99-99", "a value is not what it looks like: month must be in 1..12"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_is_made_to_be_expensive(app: App, bomb: str) -> None:
    """A billion laughs are refused before they are told: in bounded time and memory, and never as a bug."""
    text, words = BOMBS[bomb]
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    response = app.http.put("/v1/suites/bomb", content=text, headers={"Content-Type": "application/yaml"})
    assert time.monotonic() - begun < 20
    assert psutil.Process().memory_info().rss - before < 300e6
    refused(response, 422, "invalid_suite", f"suite 'bomb' is not valid YAML: {words}")
    assert len(response.content) < 1000, "what was sent is not sent back"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: !!python/object/apply:os.system ['touch /tmp/x']", "could not determine a constructor for the tag"),
        ("tasks: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("tasks: !function os.system", "could not determine a constructor for the tag '!function'"),
        ("tasks: [{kind: !!python/module:os , data: /a}]", "could not determine a constructor for the tag"),
    ],
)
def test_yaml_that_asks_for_code(app: App, text: str, words: str) -> None:
    refused(app.http.put("/v1/suites/code", content=text), 422, "invalid_suite", words)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("{kind: 'os:system'}", "no task is named 'os:system'"),
        ("{kind: evalsvc.tasks.loss.spec:LossTask, data: 'datasets:a'}", "no task is named"),
        ("{kind: language, benchmarks: [{name: arc_easy, trust_remote_code: true}]}", "extra inputs are not permitted"),
        ("{kind: language, benchmarks: [arc_easy], trust_remote_code: true}", "no key is named 'trust_remote_code'"),
        ("{kind: language, benchmarks: [arc_easy], include_path: [../x]}", "'../x' is relative"),
        ("{kind: language, benchmarks: [{task: a, class: os.system}]}", "name: field required"),
    ],
)
def test_tasks_that_ask_for_code(app: App, task: str, words: str) -> None:
    response = app.http.put("/v1/suites/code", content=f"tasks: [{task}]")
    assert words in response.json()["detail"]
    assert response.json()["code"] in ("invalid_suite", "unknown_name")


@pytest.mark.parametrize("parameter", ["data", "tokenizer", "general_text", "images", "decoder", "decoder_config"])
@pytest.mark.parametrize(
    "path", ["/etc/shadow", "datasets:../../../../../../etc/shadow", "{root}/../x", "{root}/link/x"]
)
def test_data_outside_the_roots(app: App, tmp_path: Path, parameter: str, path: str) -> None:
    """Whoever may post may not read what the service may: not by a path, not by `..`, not by a link."""
    (tmp_path / "link").symlink_to("/etc")
    path = path.format(root=tmp_path)
    task = {"kind": "loss", "data": "datasets:a", parameter: path}
    response = app.http.put("/v1/suites/spy", json={"tasks": [task]})
    words = (
        f"{parameter}: {path!r} is, or leads, outside the folders that suites may read ({tmp_path}, and `datasets:`)"
    )
    refused(response, 422, "invalid_suite", words, "EVALSVC_ROOTS")


def test_data_with_a_nul(app: App) -> None:
    task = {"kind": "loss", "data": "/etc/shadow\0.jsonl"}
    refused(app.http.put("/v1/suites/spy", json={"tasks": [task]}), 422, "invalid_suite", "a path has no NUL character")


@pytest.mark.parametrize(
    ("text", "words"), [("a\0b", "has a character that cannot be stored"), ("\ud800", "should be a valid string")]
)
def test_texts_that_a_database_cannot_hold(app: App, text: str, words: str) -> None:
    """PostgreSQL refuses them in the middle of a transaction, which was a bug of the service to who posted."""
    task = {"kind": "completions", "prompts": [text]}
    response = app.http.put("/v1/suites/odd", content=json.dumps({"tasks": [task]}))
    refused(response, 422, "invalid_suite", words)


@pytest.mark.parametrize(
    "name", ["..", "../loss", "%2e%2e%2floss", "a%2fb", "a%00b", "CON%20", "a%0d%0ab", "%C3%BC", "-a", ".a", "a" * 129]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_names_that_are_none(app: App, method: str, name: str) -> None:
    response = app.http.request(method, f"/v1/suites/{name}", content=GOOD if method == "PUT" else None)
    assert response.status_code in (404, 405, 422), response.text
    assert app.http.get("/v1/suites").status_code == 200


def test_more_tasks_than_a_request_can_check(app: App) -> None:
    """Each is checked, while whoever posts waits: a body of a megabyte held the service for a minute and a half."""
    tasks = [{"kind": "loss", "data": "datasets:a", "name": f"t{index}"} for index in range(10_000)]
    begun = time.monotonic()
    response = app.http.put("/v1/suites/many", json={"tasks": tasks})
    refused(response, 422, "invalid_suite", "has 10,000 tasks; give at most 256, and the rest in another one")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("path", ["/" + "a/" * 400_000, "datasets:" + "../" * 200_000])
def test_paths_that_take_long_to_follow(app: App, path: str) -> None:
    begun = time.monotonic()
    response = app.http.put("/v1/suites/long", json={"tasks": [{"kind": "loss", "data": path}]})
    refused(response, 422, "invalid_suite", "data: ", "characters; give at most 20,000")
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("depth", [100, 900, 5000])
@pytest.mark.parametrize(
    "body", ['{"tasks": %s}', '{"tasks": [%s]}', '{"tasks": [{"kind": "loss", "data": %s}]}', '{"tasks": [], "a": %s}']
)
def test_json_suites_that_are_deep(app: App, body: str, depth: int) -> None:
    response = app.http.put("/v1/suites/deep", content=body % ('{"a":' * depth + "1" + "}" * depth))
    refused(response, 422, "invalid_suite")
    assert len(response.content) < 5000, "what was sent is not sent back"


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
