"""Pages ask the routes of their own process: the same answers as a client gets, without the layers around them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from app_in_process import App

from evalsvc.api.app import add_routes
from evalsvc.api.middleware.threads import PAGES
from evalsvc.api.own_routes import URL, OwnRoutes, routes_alone
from evalsvc.api.routes import pages, runs
from evalsvc.client import Client
from evalsvc.errors import InternalError, InvalidRequest, UnknownName
from evalsvc.store.tokens import create_token

T = TypeVar("T")

CROWD = 40
"""Pages at a time: ten times as many as there are threads for them."""


def ask(app: App, question: Callable[[Client], T]) -> T:
    """Ask the application's own routes, in a thread that its event loop started."""
    client = Client(URL, transport=OwnRoutes(routes_alone(app.app, add_routes)))
    return app.portal.call(to_thread.run_sync, lambda: question(client))


def test_the_answers_are_those_of_the_routes(app: App, weights: Path) -> None:
    app.post(weights, suites=["loss"])
    app.coordinator.work()
    assert [run.name for run in ask(app, Client.runs)] == ["run-a"]
    assert ask(app, lambda client: client.evaluation(1)).state == app.http.get("/v1/evaluations/1").json()["state"]


def test_the_errors_of_routes_arrive_as_what_they_are(app: App) -> None:
    with pytest.raises(UnknownName, match="no run is named 'none'"):
        ask(app, lambda client: client.run("none"))
    with pytest.raises(InvalidRequest):
        ask(app, lambda client: client.compare("no checkpoint", "run-a@1"))


def test_an_error_that_nobody_meant_is_one_without_its_trace(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(runs, "runs_view", fail)
    with pytest.raises(InternalError) as raised:
        ask(app, Client.runs)
    answer = app.http.get("/")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (500, "text/html")
    assert "secret" not in raised.value.message + answer.text


def test_a_page_passes_the_layers_once(app: App) -> None:
    """Its own request has shown a token and was counted; what it asks for has no token to show."""
    with app.store.transaction() as session:
        token = create_token(session, "reader", "read")
    assert app.http.get("/v1/runs").status_code == 401
    assert app.http.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert ask(app, Client.runs) == []
    assert routes_alone(app.app, add_routes).user_middleware == []


def test_more_pages_than_threads_are_all_shown(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages wait for reads. With threads of one kind for both, as many pages as threads would wait for ever."""
    at_once = [0]
    with counted(monkeypatch, at_once), ThreadPoolExecutor(CROWD) as crowd:
        answers = list(crowd.map(lambda _: app.http.get("/"), range(CROWD), timeout=60))
    assert {answer.status_code for answer in answers} == {200}
    assert max(at_once) == PAGES, "a page more is a page that waits"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, at_once: list[int]) -> Iterator[None]:
    """Count how many pages are made at a time; each takes a moment more."""
    show, lock, now = pages._show_page, threading.Lock(), [0]

    def show_slowly(*arguments: object) -> object:
        with lock:
            now[0] += 1
            at_once.append(now[0])
        time.sleep(0.02)
        try:
            return show(*arguments)  # type: ignore[arg-type]
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(pages, "_show_page", show_slowly)
    yield


def test_pages_that_hang_hold_up_neither_probes_nor_posts(
    app: App, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, view = threading.Semaphore(0), threading.Event(), runs.runs_view

    def hang(*arguments: Any) -> Any:
        begun.release()
        ended.wait(30)
        return view(*arguments)

    monkeypatch.setattr(runs, "runs_view", hang)
    with ThreadPoolExecutor(CROWD) as crowd:
        waiting = [crowd.submit(app.http.get, "/") for _ in range(CROWD)]
        try:
            for _ in range(PAGES):
                assert begun.acquire(timeout=20)
            assert app.http.get("/readyz").status_code == 200
            assert app.post(weights).status_code == 201
            assert not any(page.done() for page in waiting)
        finally:
            ended.set()
        assert {page.result(30).status_code for page in waiting} == {200}
