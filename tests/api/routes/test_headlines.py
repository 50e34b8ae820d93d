"""The metrics of runs to show first, by REST: chosen, kept until something changes, and compared within a time."""

from collections.abc import Mapping
from typing import Any

import pytest
from app_in_process import App, refused
from compared_runs import put
from history_reference import Point, write
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.api.routes import history
from evalsvc.messages import ShardError
from evalsvc.store.session import Store


def fill(store: Store) -> None:
    put(store, "run-a", 0, 1, 0.3)
    put(store, "run-a", 10, 2, 0.7)
    put(store, "run-a", 20, 3, 0.68)
    write(store, {"lower/x": [Point(0, 2.0, 0.01, 400), Point(10, 1.0, 0.01, 400)]}, "imported")


def ask(app: App, **query: Any) -> dict[str, dict[str, Mapping[str, Any]]]:
    response = app.http.get("/v1/headlines", params={"run": ["run-a", "imported"], **query})
    assert response.status_code == 200, response.text
    return {run["run"]: {item["metric"]: item for item in run["series"]} for run in response.json()["runs"]}


def test_runs_with_their_own_headlines(app: App) -> None:
    fill(app.store)
    found = ask(app, points=2)
    assert list(found) == ["run-a", "imported"]
    assert set(found["run-a"]) == {"arc/acc", "arc/bits_per_byte", "piqa/acc", "piqa/bits_per_byte"}
    accuracy = found["run-a"]["arc/acc"]
    assert [accuracy[name]["step"] for name in ("latest", "best", "base")] == [20, 10, 0]
    assert (accuracy["base_name"], accuracy["x"], accuracy["verdicts"]) == ("run-a@0", [0, 20], None)
    named = ask(app, metric=["lower/x", "arc/acc"])
    assert (list(named["run-a"]), list(named["imported"])) == (["arc/acc"], ["lower/x"])
    assert ask(app, to=10)["run-a"]["arc/acc"]["latest"]["step"] == 10


def test_verdicts_are_those_of_a_comparison(app: App) -> None:
    fill(app.store)
    found = ask(app, compare=5)
    for verdict in found["run-a"]["arc/acc"]["verdicts"]:
        query = {"a": verdict["checkpoint"], "b": "run-a@20", "metric": "arc/acc", "level": verdict["level"]}
        [row] = app.http.get("/v1/compare", params=query).json()["contrasts"]
        assert (verdict["verdict"], verdict["difference"]) == (row["verdict"], row["difference"])
        assert verdict["basis"] == "paired"
    [of_base] = found["imported"]["lower/x"]["verdicts"]
    assert (of_base["side"], of_base["verdict"], of_base["basis"]) == ("base", "better", "unpaired")


def test_what_was_compared_is_kept_until_the_run_changes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(app.store)
    compared: list[str] = []
    with_verdicts = history.with_verdicts

    def count(run: str, *arguments: Any) -> Any:
        compared.append(run)
        return with_verdicts(run, *arguments)

    monkeypatch.setattr(history, "with_verdicts", count)
    assert ask(app, compare=1e-9)["run-a"]["arc/acc"]["verdicts"] is None, "the time is over before the first run"
    assert ask(app, compare=5) == ask(app, compare=5) == ask(app, compare=1e-9), "what is kept takes no time"
    assert compared == ["run-a", "imported"]
    put(app.store, "run-a", 30, 4, 0.9)
    assert ask(app, compare=5)["run-a"]["arc/acc"]["latest"]["step"] == 30
    assert compared == ["run-a", "imported", "run-a"]


def test_the_same_request_twice_has_no_new_answer(app: App) -> None:
    fill(app.store)
    address = "/v1/headlines?run=run-a&points=10&compare=5"
    tag = app.http.get(address).headers["etag"]
    assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 304
    put(app.store, "run-a", 30, 4, 0.9)
    assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_what_may_not_be_asked(app: App) -> None:
    refused(app.http.get("/v1/headlines"), 422, "invalid_request", "run")
    refused(app.http.get("/v1/headlines?run=run-b"), 404, "unknown_name", "no run is named 'run-b'")
    many = "&".join(f"run=run-{index}" for index in range(51))
    refused(app.http.get(f"/v1/headlines?{many}"), 422, "invalid_request", "50")
    for wrong in ("points=0", "compare=-1", "compare=inf", "compare=6", "to=-1", "limit=1"):
        refused(app.http.get(f"/v1/headlines?run=run-a&{wrong}"), 422, "invalid_request")


HEADLINE = "/v1/runs/run-a/headline"

IMAGE = ("image", "image_perplexity")

LACK = {"code": "left_out", "metric": "digits/fid", "message": "fid is left out: 8 images, and it needs 2,049"}


def put_suite(app: App, name: str, headline: str) -> None:
    text = f"headline: {headline}\ntasks: [{{kind: loss, data: datasets:data.jsonl}}]"
    assert app.http.put(f"/v1/suites/{name}", content=text).status_code in (200, 201)


def evaluate(app: App, step: int, name: str, *metrics: str, **found: object) -> None:
    enter(app.store, submission(step), suite(name))
    evaluate_whole(app.store, *(metric(1.0, item) for item in metrics), **found)


def test_the_headlines_of_the_suites_that_were_evaluated(app: App) -> None:
    put_suite(app, "first", "[loss/image, loss/special]")
    put_suite(app, "second", "[loss/text, loss/image]")
    put_suite(app, "not-evaluated", "[loss/total]")
    evaluate(app, 0, "second", "loss/text", "loss/total")
    evaluate(app, 10, "first", "loss/image", "loss/image_perplexity")
    found = app.http.get(HEADLINE).json()
    assert (found["chosen_by"], found["metrics"]) == ("suites", ["loss/text", "loss/image"])
    assert {item["name"] for item in found["names"]} == {f"loss/{name}" for name in ("text", "total", *IMAGE)}
    put_suite(app, "second", "[loss/total]")
    assert app.http.get(HEADLINE).json()["metrics"] == ["loss/total", "loss/image"], "as the suites name them now"
    assert app.http.get("/v1/suites/second").json()["headline"] == ["loss/total"]
    listed = {item["name"]: item["headline"] for item in app.http.get("/v1/suites").json()["suites"]}
    assert (listed["second"], listed["miniature"][0]) == (["loss/total"], "pairs/image")


def test_a_suite_that_is_gone_leaves_the_choice_to_the_rule(app: App) -> None:
    evaluate(app, 0, "gone", "loss/text", "loss/text_perplexity", "cloze/acc")
    found = app.http.get(HEADLINE).json()
    assert (found["chosen_by"], found["metrics"]) == ("rule", ["loss/text", "cloze/acc"])


def test_what_the_newest_evaluation_could_not_measure(app: App) -> None:
    evaluate(app, 0, "first", "loss/text", warnings=[LACK])
    evaluate(app, 10, "second", "loss/text", warnings=[{**LACK, "code": "inputs_cut"}])
    expected = {"metric": "digits/fid", "step": 0, "variant": "raw", "message": LACK["message"]}
    assert app.http.get(HEADLINE).json()["left_out"] == [expected]
    enter(app.store, submission(15), suite("first"))
    app.coordinator.error = ShardError("non_finite", "layer 3 gives NaN")
    app.coordinator.work()
    app.coordinator.error = None
    assert app.http.get(HEADLINE).json()["left_out"] == [expected], "a failure says nothing of it"
    evaluate(app, 20, "first", "loss/text")
    assert app.http.get(HEADLINE).json()["left_out"] == []


def test_a_headline_that_names_nothing_is_refused(app: App) -> None:
    for headline, words in (("[loss/txet]", "did you mean 'loss/text'"), ("7", "give a list of metrics")):
        text = f"headline: {headline}\ntasks: [{{kind: loss, data: datasets:data.jsonl}}]"
        refused(app.http.put("/v1/suites/mine", content=text), 422, "invalid_suite", words)
