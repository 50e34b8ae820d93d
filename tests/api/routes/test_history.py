"""The history by REST: buckets, pages, the newest and the best, imports, headlines, and what is not sent again."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused
from compared_runs import put
from history_reference import Point, imported, write
from pydantic import ValidationError
from queue_steps import act, enter, evaluate_whole, metric, submission, suite
from sqlalchemy import event, update

from evalsvc.api.routes import history
from evalsvc.api.routes.imports import ImportInput
from evalsvc.errors import InvalidData
from evalsvc.messages import ShardError
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.imports import import_values
from evalsvc.store.session import Store
from evalsvc.store.tables import Series

HISTORY = "/v1/runs/run-a/metrics"
SUMMARY = "/v1/runs/run-a/summary"


@pytest.fixture
def curve(app: App) -> None:
    """Of lower/loss 100 steps, every tenth of which is no number, and one value of another metric."""
    points = [Point(step, math.nan if step % 10 == 9 else 1 / (step + 1), 0.01, 400) for step in range(100)]
    write(app.store, {"lower/loss": points, "higher/acc": [Point(50, 0.5, None, None)]})


def test_what_a_client_has_is_not_sent_again(app: App, curve: None) -> None:
    for path in (HISTORY, HISTORY + "?points=5", SUMMARY):
        tag = app.http.get(path).headers["etag"]
        same = app.http.get(path, headers={"If-None-Match": f'"other", {tag}'})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert app.http.get(path, headers={"If-None-Match": "*"}).status_code == 304
        assert app.http.get(path, headers={"If-None-Match": tag.removeprefix("W/")}).status_code == 304
        write(app.store, {"lower/loss": [Point(0, 1.0, 0.01, 400)]})
        assert app.http.get(path, headers={"If-None-Match": tag}).status_code == 304, "the same again is no change"
        write(app.store, {"lower/other": [Point(0, 1.0, None, 1)]}, "run-b")
        assert app.http.get(path, headers={"If-None-Match": tag}).status_code == 304, "another run's is none either"
        write(app.store, {"lower/loss": [Point(0, 2.0, 0.01, 400)]}, replace=True)
        assert app.http.get(path, headers={"If-None-Match": tag}).status_code == 200
        write(app.store, {"lower/loss": [Point(0, 1.0, 0.01, 400)]}, replace=True)
    tag = app.http.get(HISTORY, params={"to": 5}).headers["etag"]  # of one window, which a cache may know
    assert app.http.get(HISTORY, params={"to": 6}, headers={"If-None-Match": tag}).status_code == 200
    refused(app.http.get(HISTORY, params={"metric": "no"}, headers={"If-None-Match": tag}), 404, "unknown_name")


def test_an_answer_is_out_of_date_when_a_gap_changes(app: App, weights: Path) -> None:
    """What waits was `pending` for ever to whoever asks with the tag of the answer before."""
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    app.post(weights, step=50, suites=["loss"]).raise_for_status()
    before = {path: app.http.get(path) for path in (HISTORY, HISTORY + "?points=5", SUMMARY)}
    app.http.post("/v1/evaluations/2/cancel").raise_for_status()
    for path, answer in before.items():
        assert [(gap["step"], gap["why"]) for gap in answer.json()["gaps"]] == [(50, "pending")]
        changed = app.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert [(gap["step"], gap["why"]) for gap in changed.json()["gaps"]] == [(50, "cancelled")]


def test_large_answers_are_compressed_for_who_understands_it(app: App, curve: None) -> None:
    plain = app.http.get(HISTORY, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    packed = app.http.get(HISTORY, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.json() == plain.json()
    small = app.http.get("/v1/runs/run-a/plan", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


class TestImport:
    BODY = {  # noqa: RUF012
        "source": "spreadsheet",
        "series": [{"metric": "coco/fid", "direction": "lower", "step": [3, 1], "value": [31.5, "NaN"], "n": 30000}],
    }

    def test_new_the_same_and_another(self, app: App) -> None:
        first, again = (app.http.post(HISTORY, json=self.BODY) for _ in range(2))
        counts = {"run": "run-a", "series": 1, "replaced": 0}
        assert (first.status_code, first.json()) == (201, counts | {"import": 1, "new": 2, "unchanged": 0})
        assert (again.status_code, again.json()) == (200, counts | {"import": None, "new": 0, "unchanged": 2})
        [series] = app.http.get(HISTORY).json()["series"]
        assert (series["x"], series["value"], series["n"]) == ([1, 3], ["NaN", 31.5], [30000, 30000])
        assert app.http.get(f"/v1/protocols/{series['protocol']}").json() == {"stated": "not stated"}
        other = json.loads(json.dumps(self.BODY).replace("31.5", "30"))
        words = "coco/fid at step 3 is 31.5, imported, and not 30.0"
        refused(app.http.post(HISTORY, json=other), 409, "conflict", words)
        assert app.http.post(HISTORY, json=other | {"replace": True}).json()["replaced"] == 1

    @pytest.mark.parametrize("query", [{}, {"points": 5}])
    def test_it_differs_by_its_own_fields_alone(self, app: App, query: dict[str, Any]) -> None:
        """It was shown with the guidance scale of the first measured series, whose sampling it does not have."""
        enter(app.store, submission(25), suite())
        scales = [{"data": "ab", "sampling": {"seed": 0, "guidance_scale": scale}} for scale in (1.0, 2.0)]
        evaluate_whole(app.store, *(metric(9.0, "coco/fid", protocol=Protocol(content)) for content in scales))
        series = self.BODY["series"][0] | {"protocol": "torch-fidelity 0.3"}  # type: ignore[operator]
        assert app.http.post(HISTORY, json=self.BODY | {"series": [series]}).status_code == 201
        for path in (HISTORY, SUMMARY):
            found = app.http.get(path, params=query if path == HISTORY else {}).json()["series"]
            assert [one["differs"] for one in found] == [
                {"sampling.guidance_scale": 1.0},
                {"sampling.guidance_scale": 2.0},
                {"stated": "torch-fidelity 0.3"},
            ]

    def test_a_wrong_value_is_named_and_nothing_is_entered(self, app: App) -> None:
        for change, words in [
            ({"value": [True, "x"]}, "series.0.value.0: a value is a finite number or one of NaN, Infinity, -Infinity"),
            ({"value": [1, "x"]}, "series.0.value.1: a value is a finite number or one of NaN"),
            ({"step": [3, "1"]}, "series.0.step.1: input should be a valid integer, found '1'"),
            ({"step": [3, -1]}, "series.0.step.1: input should be greater than or equal to 0, found -1"),
            ({"step": [3, 3]}, "series.0.step: step 3 is repeated at the positions 0, 1; keep one"),
            ({"step": [3]}, "series.0: step has 1 entries and value has 2; give an entry"),
            ({"step": [], "value": []}, "series.0.step: list should have at least 1 item"),
            ({"stderr": [0.1]}, "series.0: step has 2 entries and stderr has 1"),
            ({"n": [1, 0]}, "series.0.n.1: n is a whole number from 1 on"),
            ({"n": 1.5}, "series.0.n: n is a whole number from 1 on"),
            ({"direction": "up"}, "series.0.direction: input should be 'lower', 'higher' or 'none', found 'up'"),
            ({"steps": [1]}, "series.0.steps: there is no such field; leave"),
            ({"metric": "a\0b"}, "series.0.metric: the text 'a\\x00b' has a NUL or an unpaired surrogate"),
            ({"metric": "fid\x1b[2J"}, "series.0.metric: 'fid\\x1b[2J' has the control character \\x1b at position 3"),
            ({"unit": "\u202e"}, "series.0.unit: '\\u202e' has the control character \\u202e at position 0; remove it"),
            ({"protocol": "a\nb"}, "has the control character \\x0a at position 1"),
            ({"variant": "a b"}, "series.0.variant: 'a b' is not a name"),
            ({"protocol": {"a": list(range(50_000))}}, "as JSON; send at most 100,000"),
            ({f"field{number}": 1 for number in range(900)}, "; and 890 more"),
            ({"metric": "good", "direction": "none", "n": None}, "series.1 and series.0 are the same series: good"),
        ]:
            good = {"metric": "good", "step": [1], "value": [1]}
            body = self.BODY | {"series": [self.BODY["series"][0] | change, good]}
            detail = refused(app.http.post(HISTORY, json=body), 422, "invalid_request", words)
            assert len(detail) < 2000
        assert app.http.get("/v1/runs").json()["runs"] == []

    def test_a_broken_body(self, app: App) -> None:
        one = b'{"source":"x","series":[{"metric":"a","step":[1],"value":[%s]}]}'
        for content, words in [
            (one % b"NaN", "series.0.value.0: a value is a finite"),
            (one % b"1e999", "series.0.value.0: a value is a finite"),
            (b"{", "the body is not JSON: Expecting property name"),
            (b"[]", "the body: input should be an object, found []"),
            (b"{}", "source is missing; series is missing"),
        ]:
            sent = app.http.post(HISTORY, content=content, headers={"Content-Type": "application/json"})
            refused(sent, 422, "invalid_request", words)
        # A page of another site may send text without being asked, but not JSON.
        sent = app.http.post(HISTORY, content=json.dumps(self.BODY), headers={"Content-Type": "text/plain"})
        refused(sent, 422, "invalid_request", "the body must be JSON, found text/plain; send Content-Type")

    def test_wrong_values_are_not_collected(self) -> None:
        """Each would be two errors of a kilobyte: 16 MB of them took 8 GB."""
        column = [[]] * 100_000
        series = {"metric": "a", "step": column, "value": column, "stderr": column, "n": column}
        for content in (
            {"source": "x", "series": [series] * 2},
            {"source": "x", "series": column},
            {"source": "x", "series": [series | {str(number): 1 for number in range(2000)}]},
        ):
            with pytest.raises(ValidationError) as error:
                ImportInput.model_validate(content)
            assert error.value.error_count() < 20

    def test_a_body_has_a_larger_limit_than_others(self, app: App) -> None:
        size = 40_000
        columns = {"step": list(range(size)), "value": [step / 7 for step in range(size)], "stderr": [0.1 / 3] * size}
        body = {"source": "x", "series": [{"metric": "big", **columns, "n": [400] * size}]}
        assert app.http.post(HISTORY, json=body).json()["new"] == size
        [found] = app.http.get(HISTORY).json()["series"]
        assert (found["x"], found["value"], found["stderr"]) == tuple(columns.values())
        sent = app.http.post(HISTORY, content=b" " * 16_000_001)
        words = "larger than 16,000,000 bytes; split the import into several requests"
        refused(sent, 413, "invalid_request", words)
        for method, path in (("POST", "/v1/checkpoints"), ("PUT", "/v1/suites/large")):
            sent = app.http.request(method, path, content=b" " * 1_000_001)
            words = "larger than 1,000,000 bytes; name a large file by its path"
            refused(sent, 413, "invalid_request", words)


def test_a_direction_that_is_none(app: App, curve: None) -> None:
    """A stored one was a bug of every page and answer about its run."""
    points = [Point(0, 1.0, None, None)]
    with pytest.raises(InvalidData, match="direction of x/y is 'sideways'; give one of: lower, higher, none"):
        act(app.store, import_values, "run-a", "x", [imported("x/y", points, direction="sideways")], False)
    with app.store.transaction() as session:
        session.execute(update(Series).values(direction="sideways"))
    headlines = "/v1/headlines?run=run-a&strip=true&compare=1"
    for path in (HISTORY + "?points=5", "/v1/table", headlines, "/", "/runs/run-a"):
        assert app.http.get(path).status_code == 200, path
    for path in (HISTORY, SUMMARY):
        assert {series["direction"] for series in app.http.get(path).json()["series"]} == {"none"}


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
    assert app.http.get("/v1/runs/run-a/headline").json()["chosen_by"] == "rule", "no suite of the name has one"
    assert set(found["run-a"]) == {"arc/acc", "arc/bits_per_byte", "piqa/acc", "piqa/bits_per_byte"}
    accuracy = found["run-a"]["arc/acc"]
    assert [accuracy[name]["step"] for name in ("latest", "best", "base")] == [20, 10, 0]
    assert (accuracy["base_name"], accuracy["x"], accuracy["verdicts"]) == ("run-a@0", [0, 20], None)
    named = ask(app, metric=["lower/x", "arc/acc"])
    assert (list(named["run-a"]), list(named["imported"])) == (["arc/acc"], ["lower/x"])
    assert ask(app, to=10)["run-a"]["arc/acc"]["latest"]["step"] == 10


def test_strips_are_for_few_runs(app: App) -> None:
    """Of 50 runs with 20 metrics each they took 20 seconds."""
    address = "/v1/headlines?strip=true" + "&run=run-a" * 9
    refused(app.http.get(address), 422, "invalid_request", "strip is for at most 8 runs, found 9; ask for fewer")


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
    address = "/v1/headlines?run=run-a&points=10&compare=0"
    tag = app.http.get(address).headers["etag"]
    assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 304
    compared: list[str] = []
    with_verdicts = history.with_verdicts

    def count(run: str, *arguments: Any) -> Any:
        compared.append(run)
        return with_verdicts(run, *arguments)

    monkeypatch.setattr(history, "with_verdicts", count)
    assert ask(app, compare=1e-9)["imported"]["lower/x"]["verdicts"] is None, "the first run took the time"
    assert ask(app, compare=5) == ask(app, compare=5) == ask(app, compare=1e-9), "what is kept takes no time"
    assert compared == ["run-a", "imported"]
    put(app.store, "run-a", 30, 4, 0.9)
    assert ask(app, compare=5)["run-a"]["arc/acc"]["latest"]["step"] == 30
    assert compared == ["run-a", "imported", "run-a"]
    assert app.http.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_the_checkpoints_of_all_verdicts_are_read_together(app: App) -> None:
    """One by one, the checkpoints of 50 runs with six headline metrics took more than a second."""
    statements: list[str] = []
    event.listen(app.store.engine, "after_cursor_execute", lambda *found: statements.append(found[2]))
    asked = []
    for run, count in (("few", 3), ("many", 12)):
        names = [f"arc{best}/acc" for best in range(count)]
        for step in range(count):
            enter(app.store, submission(step, run=run), suite())
            evaluate_whole(app.store, *(metric(float(step != best), name) for best, name in enumerate(names)))
        before = len(statements)
        ask(app, run=run, metric=names)
        plain = len(statements)
        found = ask(app, run=run, metric=names, compare=5)[run]
        asked.append(len(statements) - plain - (plain - before))
        best = {verdict["checkpoint"] for item in found.values() for verdict in item["verdicts"]}
        assert len(best) == count - 1, "the newest is best by one metric, and each other one by a metric of its own"
    assert asked[0] == asked[1]


HEADLINE = "/v1/runs/run-a/headline"

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
    names = {item["name"].removeprefix("loss/") for item in found["names"]}
    assert names == {"text", "total", "image", "image_perplexity"}
    put_suite(app, "second", "[loss/total]")
    assert app.http.get(HEADLINE).json()["metrics"] == ["loss/total", "loss/image"], "as the suites name them now"
    assert app.http.get("/v1/suites/second").json()["headline"] == ["loss/total"]
    listed = {item["name"]: item["headline"] for item in app.http.get("/v1/suites").json()["suites"]}
    assert (listed["second"], listed["miniature"][0]) == (["loss/total"], "pairs/image")


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
