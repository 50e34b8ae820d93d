"""Runs, plans and bases, their deletion; and lists by REST: pages, filters, and what may not be asked."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from app_in_process import App, refused
from compared_runs import put
from history_reference import Point, write
from long_lists import fill_lists
from queue_steps import enter, evaluate_whole, metric, submission, suite

from evalsvc.client import Client
from evalsvc.errors import InvalidRequest, WrongState
from evalsvc.files.artifacts import artifact_path, keep_content
from evalsvc.store.tables import Artifact


def measured(app: App, weights: Path, step: int, *values: float) -> None:
    """A checkpoint at a step, evaluated with these values of loss/0, loss/1, …"""
    assert app.post(weights, step=step, suites=["loss"]).status_code == 201
    evaluate_whole(app.store, *(metric(value, f"loss/{index}") for index, value in enumerate(values)))


def test_runs_and_a_run(app: App, weights: Path) -> None:
    measured(app, weights, 50, 1.0, 2.0)
    app.post(weights, step=25, tokens_seen=10)
    answer = app.http.get("/v1/runs")
    (run,), known = answer.json()["runs"], {"If-None-Match": answer.headers["etag"]}
    assert {"name": "run-a", "checkpoints": 2, "last_step": 50, "values": 2}.items() <= run.items()
    assert run["last_value_step"] == 50
    document = app.http.get("/v1/runs/run-a").json()
    assert document["plan"] == {"suites": [], "when_behind": "all", "at_most": 1}
    assert [(item["step"], item["tokens_seen"]) for item in document["checkpoints"]] == [(25, 10), (50, None)]
    assert document["checkpoints"][1]["evaluations"] == [{"id": 1, "suite": "loss", "state": "succeeded"}]
    assert app.http.get("/v1/runs", headers=known).status_code == 304
    assert app.http.get("/v1/runs?limit=7", headers=known).status_code == 200
    app.post(weights, step=75).raise_for_status()
    assert app.http.get("/v1/runs", headers=known).json()["runs"][0]["last_step"] == 75


def test_result_of_a_checkpoint(app: App, weights: Path) -> None:
    measured(app, weights, 25, 3.0, math.nan)
    response = app.http.get("/v1/runs/run-a/results/25", params={"suite": "loss"})
    document = json.loads(response.content, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (document["state"], document["suite"]["name"]) == ("succeeded", "loss")
    assert [(item["name"], item["value"]) for item in document["metrics"]][:2] == [("loss/0", 3.0), ("loss/1", "NaN")]
    assert set(document["protocols"]) == {item["protocol"] for item in document["metrics"]}


def test_completions_along_a_run(app: App) -> None:
    enter(app.store, submission(5), suite(kind="completions"))
    items = [{"index": 0, "prompt": "cheese =>", "way": "greedy", "text": " fromage", "base": None}]
    evaluate_whole(app.store, items=items)
    found = app.http.get("/v1/runs/run-a/completions", params={"prompt": "cheese", "variant": "raw"}).json()
    [step] = found["steps"]
    [completion] = step.pop("completions")
    assert step == {"step": 5, "variant": "raw", "task": "completions-0"}
    assert completion.items() >= {**items[0], "ids": None, "previous": None}.items()


def test_base(app: App, weights: Path) -> None:
    """It may come before the first checkpoint."""
    app.post(weights, run="text", step=9)
    expected = {"run": "text", "step": 9, "variant": "raw", "named": True, "checkpoint": 1}
    assert app.http.put("/v1/runs/run-a/base", json={"run": "text", "step": 9}).json() == expected
    assert app.http.get("/v1/runs/run-a").json()["base"] == expected
    app.post(weights, step=9, variant="ema")
    base = app.http.put("/v1/runs/run-a/base", json={"step": 9, "variant": "ema"}).json()
    assert (base["run"], base["step"], base["variant"]) == ("run-a", 9, "ema"), "of the same run unless said"
    for body, status, code, words in [
        ({"run": "run-b", "step": 25}, 404, "unknown_name", "no run is named 'run-b'; did you mean 'run-a'?"),
        ({"step": "25"}, 422, "invalid_request", "step: input should be a valid integer, found '25'"),
        ({"steps": 25}, 422, "invalid_request", "no field is named 'steps'; did you mean 'step'?"),
    ]:
        refused(app.http.put("/v1/runs/run-a/base", json=body), status, code, words)
    weights.unlink()
    gone = app.http.put("/v1/runs/run-a/base", json={"run": "text", "step": 9})
    refused(gone, 410, "checkpoint_gone", "was deleted before it was evaluated")
    assert app.http.get("/v1/runs/run-a").json()["base"] == base


def test_plan(app: App) -> None:
    """It may come before the first checkpoint."""
    for plan, status, code, words in [
        ({"suites": [{"suite": "los", "every": 5}]}, 404, "unknown_name", "did you mean 'loss'?"),
        ({"suites": [{"suite": "loss", "every": 0}]}, 422, "invalid_request", "suites.0.every: input should be"),
        ({"suites": [{"suite": "loss", "evry": 5}]}, 422, "invalid_request", "did you mean 'every'?"),
        ({"suites": [{"suite": "loss"}]}, 422, "invalid_request", "suites.0.every is missing"),
        ({"when_behind": "latest"}, 422, "invalid_request", "'all', 'newest' or 'refuse', found 'latest'"),
        ({"at_most": 0}, 422, "invalid_request", "at_most: input should be greater than or equal to 1, found 0"),
        ({"at_most": 10**9}, 422, "invalid_request", "at_most: input should be less than or equal to 1000"),
        ({"at_most": True}, 422, "invalid_request", "at_most: input should be a valid integer, found True"),
        ({"when_behind": "newest", "at_most": 2}, 422, "invalid_request", "at_most needs when_behind: refuse"),
    ]:
        plan = {"suites": [], "when_behind": "refuse", **plan}
        refused(app.http.put("/v1/runs/run-a/plan", json=plan), status, code, words)
    assert app.http.get("/v1/runs").json()["runs"] == []
    given = {"suites": [{"suite": "loss", "every": 500, "first": 1000, "last": None}], "when_behind": "newest"}
    assert app.http.put("/v1/runs/run-a/plan", json=given).json() == given | {"at_most": 1}
    assert app.http.get("/v1/runs/run-a/plan").json() == given | {"at_most": 1}


def test_a_plan_of_more_suites_than_a_request_can_check(app: App) -> None:
    """Each was looked for, with the database locked: a body of a megabyte held the service for four minutes."""
    begun = time.monotonic()
    for number, words in ((20_000, "at most 1,000"), (257, "at most 256 items"), (256, "")):
        answer = app.http.put("/v1/runs/a/plan", json={"suites": [{"suite": "loss", "every": 1}] * number})
        if words:
            refused(answer, 422, "invalid_request", "suites", words)
    assert answer.status_code == 200
    assert time.monotonic() - begun < 5


CHECKPOINT = "/v1/checkpoints/1"


def test_a_deletion_takes_the_files_that_nobody_else_needs(app: App, weights: Path) -> None:
    for run, step in (("run-a", 25), ("run-b", 25), ("run-a", 50)):
        app.post(weights, run=run, step=step, suites=["loss"], spool="link").raise_for_status()
        if run == "run-b":
            app.coordinator.work()
    folder, spool = app.settings.artifacts_path, app.settings.data_path / "spool"
    own, shared = keep_content(folder, b"own"), keep_content(folder, b"shared")
    with app.store.transaction() as session:
        common = {"kind": "grid", "media_type": "image/png", "size": 3, "details": {}}
        for task, sha256 in ((1, own), (1, shared), (3, shared)):
            session.add(Artifact(task_id=task, name=sha256[:4], sha256=sha256, **common))
    assert (spool / "3").is_dir()
    woken = app.coordinator.woken
    with Client("http://evalsvc", transport=app.transport) as client:
        with pytest.raises(WrongState, match=r"unfinished evaluations \(3\).*cancel=true"):
            client.delete_checkpoint(3, confirm="run-a@50")
        with pytest.raises(WrongState, match=r"unfinished evaluations \(3\).*cancel=true"):
            client.delete_run("run-a")
        with pytest.raises(InvalidRequest, match="give confirm=run-a@50"):
            client.delete_checkpoint(3, confirm="run-a@1")
        place = {"checkpoint": 3, "run": "run-a", "step": 50, "variant": "raw"}
        counts = {"evaluations": 1, "values": 0, "artifacts": 0, "freed_bytes": 0}
        assert client.delete_checkpoint(3, confirm="run-a@50:raw", cancel=True).model_dump() == place | counts
        assert app.coordinator.woken > woken, "an attempt that runs is told to stop"
        assert (spool / "1").is_dir()
        assert not (spool / "3").exists()
        again = client.submit("run-a", 50, str(weights), suites=["loss"], spool="link")
        assert again.checkpoint.id == 4
        counts = {"checkpoints": 2, "evaluations": 2, "values": 2, "artifacts": 2, "freed_bytes": 3}
        assert client.delete_run("run-a", cancel=True).model_dump() == {"run": "run-a", **counts}
    assert not artifact_path(folder, own).exists()
    assert artifact_path(folder, shared).exists()
    assert [path.name for path in spool.iterdir() if path.is_dir()] == ["2"]
    assert weights.exists()
    for path in ("/v1/runs/run-a", CHECKPOINT, "/v1/evaluations/1"):
        refused(app.http.get(path), 404, "unknown_name")
    assert len(app.http.get("/v1/runs/run-b/metrics").json()["series"]) == 2


def test_what_is_not_confirmed_stays(app: App, weights: Path) -> None:
    """Whatever is sent in the place of a name or an id."""
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    refused(app.http.delete(CHECKPOINT), 422, "invalid_request", "confirm is missing")
    refused(app.http.delete("/v1/runs/run-a"), 422, "invalid_request", "confirm is missing")
    refused(app.http.delete("/v1/runs/run-a?confirm=run-b"), 422, "invalid_request", "to delete, give confirm=run-a")
    words = "checkpoint 1 is run-a@25; to delete, give confirm=run-a@25"
    for name in ("", "1", "run-a", "run-a@50", "run-a@25:ema", "run-a@025", "run-a@25%0d%0a", "a" * 4000, "RUN-A@25"):
        answer = app.http.delete(f"{CHECKPOINT}?confirm={name}")
        assert len(refused(answer, 422, "invalid_request", "confirm is '", words)) < 400
    refused(app.http.delete("/v1/checkpoints/99?confirm=run-a@25"), 404, "unknown_name", "there is no checkpoint 99")
    for number in ("0", "99999999999999999999", "1%20OR%201=1"):
        answer = app.http.delete(f"/v1/checkpoints/{number}?confirm=run-a@25")
        refused(answer, 422, "invalid_request", "checkpoint_id: input should be")
    assert app.http.get(CHECKPOINT).json()["evaluations"][0]["state"] == "succeeded"


def test_a_kept_history_is_out_of_date_after_renaming(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"]).raise_for_status()
    app.coordinator.work()
    app.post(weights, run="run-b", suites=[]).raise_for_status()
    tag = app.http.get("/v1/runs/run-a/metrics").headers["etag"]
    refused(app.http.patch("/v1/runs/run-a", json={"name": "run-b"}), 409, "conflict", "a run 'run-b' exists")
    refused(app.http.patch("/v1/runs/run-a", json={"name": "a b"}), 422, "invalid_request", "is not a name")
    with Client("http://evalsvc", transport=app.transport) as client:
        assert client.rename_run("run-a", "run-z").name == "run-z"
    again = app.http.get("/v1/runs/run-z/metrics", headers={"If-None-Match": tag})
    assert (again.status_code, again.json()["run"]) == (200, "run-z")


LISTS = {
    "/v1/runs": "runs",
    "/v1/checkpoints": "checkpoints",
    "/v1/evaluations": "evaluations",
    "/v1/runs/run-a/artifacts": "artifacts",
    "/v1/evaluations/1/artifacts": "artifacts",
    "/v1/protocols": "protocols",
    "/v1/suites": "suites",
}


@pytest.fixture
def filled(app: App) -> App:
    for run, step in (("answers", 0), ("late", 99)):
        put(app.store, run, step, 1, 0.5)
    enter(app.store, submission(50, run="answers", uri="/50.pt", path="/50.pt"))
    for step in range(5):
        enter(app.store, submission(step), suite())
        enter(app.store, submission(step, run=f"run-{step}"))
    write(app.store, {f"lower/{index}": [Point(0, 1.0, None, 1)] for index in range(3)}, "run-b")
    return app


def pages(app: App, path: str, limit: int) -> list[Any]:
    rows: list[Any] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        answer = app.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()[LISTS[path]]) <= limit
        rows += answer.json()[LISTS[path]]
        query["cursor"] = answer.json()["next_cursor"]
        if query["cursor"] is None:
            return rows


def test_every_list_has_pages(filled: App) -> None:
    for path, key in LISTS.items():
        whole = filled.http.get(path).json()
        assert whole["next_cursor"] is None
        assert pages(filled, path, 2) == whole[key], path
    names = [row["name"] for row in filled.http.get("/v1/suites").json()["suites"]]
    assert names == sorted(names)


def test_a_list_is_a_hundred_rows_unless_asked(app: App) -> None:
    with app.store.transaction() as session:
        fill_lists(session, 101)
    first = app.http.get("/v1/checkpoints").json()
    assert len(first["checkpoints"]) == 100
    [last] = app.http.get("/v1/checkpoints", params={"cursor": first["next_cursor"]}).json()["checkpoints"]
    assert (last["step"], last["run"]) == (101, "run-00001")


MISTAKES = [
    ("runs/run-x", 404, "no run is named 'run-x'; did you mean 'run-"),
    ("runs/run-x/metrics", 404, "no run is named 'run-x'"),
    ("runs/run-x/plan", 404, "no run is named 'run-x'"),
    ("runs/run-x/completions", 404, "no run is named 'run-x'"),
    ("runs/run-a/results/24", 404, "no checkpoint at step 24, variant 'raw'; the nearest steps are 1, 2, 3, 4"),
    ("runs/run-a/results/-1", 422, "step: input should be greater than or equal to 0"),
    ("runs/run-a/results/4?suite=quik", 404, "is named 'quik'; did you mean 'quick'?"),
    ("runs/run%20a/metrics", 422, "run: 'run a' is not a name"),
    ("runs/run-b/metrics?variant=row", 404, "no variant is named 'row'; did you mean 'raw'?"),
    ("runs/run-b/metrics?x=time", 422, "x: input should be 'step' or 'tokens', found 'time'"),
    ("runs/run-b/metrics?points=0", 422, "points: input should be greater than or equal to 1, found '0'"),
    ("runs/run-b/metrics?points=5&limit=5", 422, "points gives whole series in buckets, without pages"),
    ("runs/run-b/metrics?cursor=abc", 422, "cursor is given without limit; give the limit"),
    ("runs/run-b/metrics?cursor=abc&limit=1", 422, "start again without `cursor`"),
    ("runs/run-b/metrics?from=9223372036854775808", 422, "from: input should be less than or equal to"),
    ("runs/run-b/metrics?x=tokens&points=5", 422, "was posted with tokens_seen"),
    ("runs/run-b/metrics?metric=lower/&points=5", 404, "did you mean 'lower/"),
    ("headlines", 422, "run"),
    ("headlines?run=run-x", 404, "no run is named 'run-x'"),
    (f"headlines?{'&'.join(f'run=run-{index}' for index in range(51))}", 422, "50"),
    *((f"headlines?run=run-a&{wrong}", 422, wrong.split("=")[0]) for wrong in ("points=0", "to=-1", "limit=1")),
    *((f"headlines?run=run-a&compare={seconds}", 422, "compare") for seconds in ("-1", "inf", "6")),
    ("table?run=run-x", 404, "no run is named 'run-x'; did you mean"),
    ("table?metric=lower/", 404, "did you mean 'lower/"),
    ("table?variant=row", 404, "did you mean 'raw'?"),
    ("table?format=xls", 422, "format: input should be 'json' or 'csv', found 'xls'"),
    ("protocols/0123456789abcdef", 404, "no protocol is named '0123456789abcdef'"),
    ("protocols/a%00b", 422, "is not a name"),
    ("compare?a=run-a@0", 422, "b is missing"),
    ("compare?a=answers@0&b=answers@50", 404, "step 50 has no evaluation yet; request an evaluation with POST"),
    ("compare?a=answer@0&b=answers@0", 404, "no run is named 'answer'; did you mean 'answers'"),
    ("compare?a=run-a&b=answers@0", 422, "'run-a' is not a checkpoint; write RUN@STEP or RUN@STEP:VARIANT"),
    ("compare?a=answers@0&b=answers@0&metric=arc/akk", 404, "did you mean 'arc/acc'?"),
    ("compare?a=answers@0&b=answers@0&suite=text-2", 404, "did you mean 'text-1'?"),
    ("compare?a=answers@0&b=answers@0&flipped=-1", 422, "flipped"),
    ("compare?a=answers@0&b=answers@0&family=bonferroni", 422, "family: input should be 'none' or 'holm'"),
    ("compare/curves?a=answers@0&b=late", 422, "'answers@0' is not a run; write RUN or RUN:VARIANT"),
    ("compare/curves?a=answers&b=late", 404, "no evaluated step in common: answers has 0; late has 99"),
    ("compare/curves?a=late", 404, "run 'late' has no base to compare with: no checkpoint was posted"),
    ("compare/curves?a=answers&band=wide", 422, "band"),
    ("evaluations/1/items?columns=bit", 404, "no column of the items of evaluation 1 is named 'bit'; did you mean"),
    ("evaluations/1/items?benchmark=pica", 404, "no benchmark of evaluation 1 is named 'pica'; did you mean 'piqa'"),
    ("evaluations/1/items?task=language-1", 404, "no task of evaluation 1 is named 'language-1'; did you mean"),
    *((f"evaluations/99{path}", 404, "there is no evaluation 99") for path in ("", "/suite", "/artifacts", "/events")),
    ("evaluations/1/events?last_event_id=x", 422, "last_event_id: input should be"),
    ("artifacts/99", 404, "there is no artifact 99"),
    ("checkpoints/99", 404, "there is no checkpoint 99"),
    ("checkpoints?run=' OR 1=1 --", 404, "no run is named"),
    ("checkpoints?run=", 404, "no run is named ''"),
    (f"checkpoints?run={'r' * 20_000}", 404, "no run is named"),
    ("checkpoints?variant=RAW", 404, "no variant is named 'RAW'; available: raw"),
    ("checkpoints?state=done", 422, "state: input should be 'queued', 'running'"),
    ("checkpoints?from=5&to=4", 422, "from=5 is greater than to=4; swap the two"),
    ("checkpoints?from=99999999999999999999", 422, "from: input should be less than or equal to"),
    ("evaluations?suite=los", 404, "no suite is named 'los'; did you mean 'loss'"),
    ("protocols?metric=lower/", 404, "no metric is named 'lower/'; did you mean 'lower/"),
    ("protocols?run=run-a&metric=lower/0", 404, "no metric is named 'lower/0'"),
    ("protocols?name=lower/0", 422, "no query parameter is named 'name'"),
]
"""Queries, the status of each answer, and words of its detail."""


def test_a_mistake_is_named_with_what_is_near(filled: App) -> None:
    for query, status, words in MISTAKES:
        code = {404: "unknown_name", 422: "invalid_request"}[status]
        assert len(refused(filled.http.get(f"/v1/{query}"), status, code, words)) < 800, query


def test_a_suite_that_evaluated_nothing_yet_has_no_evaluations(filled: App, weights: Path) -> None:
    answer = filled.http.get("/v1/evaluations", params={"suite": "loss"})
    assert answer.json() == {"evaluations": [], "next_cursor": None}
    [newest, *_] = filled.http.get("/v1/evaluations", params={"suite": "quick", "run": "run-a"}).json()["evaluations"]
    assert (newest["id"], newest["step"], newest["suite"]["name"], newest["state"]) == (7, 4, "quick", "queued")


def test_limits_and_cursors_that_are_refused(filled: App) -> None:
    """Each is answered with a problem, and none with a bug or an empty list."""
    of_runs = filled.http.get("/v1/runs", params={"limit": 1}).json()["next_cursor"]
    of_checkpoints = filled.http.get("/v1/checkpoints", params={"limit": 1}).json()["next_cursor"]
    again = "start again without `cursor`"
    for limit in ("0", "-1", "1001", "1e3", "9" * 5000, "١٢٣x", "", "NaN"):
        refused(filled.http.get("/v1/runs", params={"limit": limit}), 422, "invalid_request", "limit: ")
    for path in LISTS:
        refused(filled.http.get(path, params={"limit": 1001}), 422, "invalid_request", "limit: ")
        for cursor in (of_checkpoints if path == "/v1/runs" else of_runs, "A" * 60_000, ""):
            refused(filled.http.get(path, params={"cursor": cursor}), 422, "invalid_request", again)
    moved = {"run": "run-a", "cursor": of_checkpoints}
    refused(filled.http.get("/v1/checkpoints", params=moved), 422, "invalid_request", again)
