"""Answers that are kept: nobody is told what is no longer so, and they are bounded."""

import pytest
from app_in_process import App

from evalsvc.api import answers as module
from evalsvc.api.answers import Answers
from evalsvc.api.routes import history


def put(app: App, value: float, run: str = "run-a") -> None:
    series = [{"metric": "a/b", "step": [1], "value": [value]}]
    body = {"source": "x", "series": series, "replace": True}
    assert app.http.post(f"/v1/runs/{run}/metrics", json=body).is_success


def values(app: App, run: str = "run-a", **query: int) -> list[float]:
    response = app.http.get(f"/v1/runs/{run}/metrics", params=query)
    document = response.json()
    assert document["run"] == run
    [series] = document["series"]
    return list(series["last" if query else "value"])


def test_the_same_question_is_answered_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 clients that watch one run each had it read and written anew."""
    put(app, 1.0)
    read, asked = history.read_history, []

    def count(*arguments: object) -> object:
        asked.append(arguments)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(history, "read_history", count)
    assert [values(app) for _ in range(5)] == [[1.0]] * 5
    assert len(asked) == 1


def test_what_was_written_is_seen_at_once(app: App) -> None:
    for value in (1.0, 2.0, 3.0):
        put(app, value)
        assert values(app) == values(app) == [value]
        assert values(app, points=10) == [value]
        summary = app.http.get("/v1/runs/run-a/summary").json()
        assert summary == app.http.get("/v1/runs/run-a/summary").json()
        assert str(value) in str(summary)


def test_runs_that_take_each_others_names(app: App) -> None:
    put(app, 1.0)
    assert values(app) == [1.0]
    assert app.http.patch("/v1/runs/run-a", json={"name": "run-b"}).is_success
    assert values(app, "run-b") == [1.0]
    put(app, 2.0)
    assert values(app) == [2.0]
    assert app.http.delete("/v1/runs/run-a", params={"confirm": "run-a"}).is_success
    assert app.http.get("/v1/runs/run-a/metrics").status_code == 404
    put(app, 3.0)
    assert values(app) == [3.0]


def test_kept_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    monkeypatch.setattr(module, "ENTRY_BYTES", 10)
    answers, made = Answers[bytes](), []

    def ask(tag: str, size: int = 40) -> None:
        assert answers.get("run-a", tag, lambda: made.append(tag) or bytes(size)) == bytes(size)  # type: ignore[func-returns-value]

    for tag in ("one", "two", "one", "three", "one", "two"):
        ask(tag)
    assert made == ["one", "two", "three", "two"], "the one that was asked for longest ago goes first"
    ask("huge", 1000)
    ask("one")
    assert made[-2:] == ["huge", "one"]


def test_many_small_answers_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of a few bytes each would fill the memory long before their bytes reach the limit."""
    monkeypatch.setattr(module, "KEPT_BYTES", 10 * module.ENTRY_BYTES)
    plain, heavy = Answers[bytes](), Answers[bytes](lambda body: module.ENTRY_BYTES)
    for answers, first in ((plain, 90), (heavy, 95)):
        for number in range(100):
            answers.get("run-a", str(number), lambda: b"")
        kept = [number for number in range(100) if answers.kept("run-a", str(number)) is not None]
        assert kept == list(range(first, 100))
