"""The metrics of a run to show first, by REST."""

from app_in_process import App, refused
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.messages import ShardError

HEADLINE = "/v1/runs/run-a/headline"

LACK = {"code": "left_out", "metric": "digits/fid", "message": "fid is left out: 8 images, and it needs 2,049"}


def put(app: App, name: str, headline: str) -> None:
    text = f"headline: {headline}\ntasks: [{{kind: loss, data: datasets:data.jsonl}}]"
    assert app.http.put(f"/v1/suites/{name}", content=text).status_code in (200, 201)


def evaluate(app: App, step: int, name: str, *metrics: str, **found: object) -> None:
    enter(app.store, submission(step), suite(name))
    evaluate_whole(app.store, *(metric(1.0, item) for item in metrics), **found)


def test_the_headlines_of_the_suites_that_were_evaluated(app: App) -> None:
    put(app, "first", "[loss/image, loss/special]")
    put(app, "second", "[loss/text, loss/image]")
    put(app, "not-evaluated", "[loss/total]")
    evaluate(app, 0, "second", "loss/text", "loss/total")
    evaluate(app, 10, "first", "loss/image", "loss/image_perplexity")
    found = app.http.get(HEADLINE).json()
    assert (found["chosen_by"], found["metrics"]) == ("suites", ["loss/text", "loss/image"])
    assert {item["name"] for item in found["names"]} == {
        "loss/text",
        "loss/total",
        "loss/image",
        "loss/image_perplexity",
    }
    put(app, "second", "[loss/total]")
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


def test_a_run_that_is_not_there(app: App) -> None:
    evaluate(app, 0, "first", "loss/text")
    refused(app.http.get("/v1/runs/run-b/headline"), 404, "unknown_name", "did you mean 'run-a'")


def test_a_headline_that_names_nothing_is_refused(app: App) -> None:
    for headline, words in (("[loss/txet]", "did you mean 'loss/text'"), ("7", "give a list of metrics")):
        text = f"headline: {headline}\ntasks: [{{kind: loss, data: datasets:data.jsonl}}]"
        refused(app.http.put("/v1/suites/mine", content=text), 422, "invalid_suite", words)
