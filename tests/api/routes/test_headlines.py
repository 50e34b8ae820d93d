"""The headline metrics of several runs by REST: kept until something changes, and compared within a time."""

from collections.abc import Mapping
from typing import Any

import pytest
from app_in_process import App, refused
from compared_runs import put
from history_reference import Point, write

from evalsvc.api.routes import history
from evalsvc.store.lookup import find_run
from evalsvc.store.runs.base import name_base
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


def test_a_base_that_is_named_later_is_seen(app: App) -> None:
    fill(app.store)
    put(app.store, "text", 7, 5, 0.5)
    assert ask(app)["run-a"]["arc/acc"]["base_name"] == "run-a@0"
    with app.store.transaction() as session:
        name_base(session, find_run(session, "run-a"), "text", 7, "raw")
    assert ask(app)["run-a"]["arc/acc"]["base_name"] == "text@7"


def test_what_may_not_be_asked(app: App) -> None:
    refused(app.http.get("/v1/headlines"), 422, "invalid_request", "run")
    refused(app.http.get("/v1/headlines?run=run-b"), 404, "unknown_name", "no run is named 'run-b'")
    many = "&".join(f"run=run-{index}" for index in range(51))
    refused(app.http.get(f"/v1/headlines?{many}"), 422, "invalid_request", "50")
    for wrong in ("points=0", "compare=-1", "compare=inf", "compare=6", "to=-1", "limit=1"):
        refused(app.http.get(f"/v1/headlines?run=run-a&{wrong}"), 422, "invalid_request")
