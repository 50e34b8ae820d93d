"""What pages read, and charts as pictures: what they cost the service, and whom they keep waiting."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from app_in_process import App
from dashboard_history import LONG, OTHER, RUN, Dashboard, dashboard_on_port
from history_reference import Point, write
from lxml import html
from signed_in import sent_by

from evalsvc.api import own_reader
from evalsvc.api.middleware.threads import THREADS, WAITING
from evalsvc.api.own_reader import OwnReader
from evalsvc.client import Client
from evalsvc.client.reader import ServiceReader
from evalsvc.errors import EvalsvcError
from evalsvc.web import vega

RENDERS = THREADS["render"]

MOST = RENDERS + THREADS["picture"] + WAITING["render"] + WAITING["picture"]
"""The most pictures that are rendered, waited for and read at once."""

CHART = "/panels/curve.png?run=run-a&metric=higher/b"


class Renderer:
    """Renders nothing, as slowly as it is told to."""

    def __init__(self) -> None:
        self.begun: list[object] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.running = self.most = 0

    def __call__(self, spec: Any, kind: str, theme: str) -> bytes:
        self.begun.append(kind)
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.go_on.wait(5)
        self.running -= 1
        return f"a picture as {kind}".encode()


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renderer]:
    renderer = Renderer()
    monkeypatch.setattr(vega, "render", renderer)
    yield renderer
    renderer.go_on.set()


def put(app: App, steps: Sequence[int], run: str = "run-a") -> None:
    write(app.store, {"higher/b": [Point(step, 1.0, None, None) for step in steps]}, run)


@pytest.fixture
def drawn(app: App) -> App:
    """An application with a metric of a run."""
    put(app, range(10))
    return app


def told(response: httpx2.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return " ".join(html.fromstring(response.text).find(".//main").text_content().split())


def test_pictures_wait_for_each_other_and_nothing_waits_for_them(drawn: App, renderer: Renderer) -> None:
    """24 links to pictures held the places of all reads, and every reader waited for 32 s."""
    renderer.go_on.clear()
    crowd = 60
    with ThreadPoolExecutor(crowd) as pool:
        asked = [pool.submit(drawn.http.get, f"{CHART}&to={100 + at}") for at in range(crowd)]
        try:
            while sum(each.done() for each in asked) < crowd - MOST:
                time.sleep(0.01)
            for path in ("/v1/runs", "/", "/panels/curve.csv?run=run-a&metric=higher/b", "/healthz"):
                assert drawn.http.get(path).status_code == 200
            refused = [each.result() for each in asked if each.done()]
        finally:
            renderer.go_on.set()
        codes = Counter(each.result().status_code for each in asked)
        assert codes.keys() == {200, 429}
        assert RENDERS + WAITING["render"] <= codes[200] <= MOST
    assert renderer.most == RENDERS
    assert "charts wait to be drawn" in told(refused[0], 429)
    assert int(refused[0].headers["retry-after"]) > 0


def test_a_picture_is_rendered_once(drawn: App, renderer: Renderer) -> None:
    first = drawn.http.get(CHART)
    assert first.content == b"a picture as png"
    assert first.headers["content-disposition"] == 'inline; filename="run-a_higher-b.png"'
    assert drawn.http.get(CHART, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert drawn.http.get(CHART).content == first.content
    assert drawn.http.get(CHART.replace(".png", ".svg")).content == b"a picture as svg"
    assert renderer.begun == ["png", "svg"]
    drawn.app.state.state.pictures.__init__()  # what a browser has is not rendered to tell that it is the same
    assert drawn.http.get(CHART, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert renderer.begun == ["png", "svg"]
    put(drawn, [10])
    changed = drawn.http.get(CHART, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert renderer.begun == ["png", "svg", "png"]


def test_nothing_is_rendered_for_a_client_that_left(drawn: App, renderer: Renderer) -> None:
    sent_by(drawn, CHART, [{"type": "http.request", "body": b"", "more_body": False}])
    assert renderer.begun == []


def test_a_chart_of_too_many_marks_is_refused(drawn: App, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering grows with the marks, and the height of a picture with the metrics: 10,000 took gigabytes."""
    put(drawn, range(10), "run-b")
    monkeypatch.setattr(vega, "MOST_MARKS", 9)
    text = told(drawn.http.get(CHART), 422)
    assert "has 10 marks" in text
    assert "/panels/curve.csv?run=run-a" in text
    assert drawn.http.get(CHART.replace("png", "csv")).status_code == 200
    monkeypatch.setattr(vega, "MOST_MARKS", 10)
    assert drawn.http.get(CHART).status_code == 200
    monkeypatch.setattr(vega, "MOST_CURVES", 1)
    assert "of 2 curves" in told(drawn.http.get(f"{CHART}&run=run-b"), 422)
    assert renderer.begun == ["png"]


def test_the_script_of_charts_takes_its_turn(drawn: App, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address needs no token, so anybody had a process for each request until the first one was done."""
    monkeypatch.setattr(vega, "script", lambda folder: renderer({}, "script", "light") and Path(__file__))
    renderer.go_on.clear()
    address = f"/vega/{vega.script_name()}"
    number = RENDERS + WAITING["render"]
    with ThreadPoolExecutor(number + 8) as pool:
        asked = [pool.submit(drawn.http.get, address) for _ in range(number + 8)]
        try:
            while sum(each.done() for each in asked) < 8:
                time.sleep(0.01)
            assert drawn.http.get("/v1/runs").status_code == 200
        finally:
            renderer.go_on.set()
        assert sum(each.result().status_code == 429 for each in asked) == 8
    assert renderer.most == RENDERS


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with dashboard_on_port(tmp_path_factory.mktemp("dashboard") / "data") as dashboard:
        yield dashboard


@pytest.mark.usefixtures("short_process")
@pytest.mark.parametrize(
    "ask",
    [
        lambda source: source.artifact_content(1),
        lambda source: source.artifact_content(9999),
        lambda source: source.artifacts(RUN, "grid", 2000),
        lambda source: source.buckets(RUN, ["loss/*"], points=3, variant="raw", x="tokens", last=7_000_000),
        lambda source: source.buckets(RUN, ["none"], points=3),
        lambda source: source.buckets("a\0b", points=3),
        lambda source: source.checkpoint(1),
        lambda source: [checkpoint.id for checkpoint in source.checkpoints(RUN, variant="ema", first=4000)],
        lambda source: source.compare(f"{RUN}@2000", f"{OTHER}@2000", level=0.9, family="holm"),
        lambda source: source.compare("no checkpoint", f"{OTHER}@2000"),
        lambda source: source.compare_runs(RUN, OTHER, ["loss/text", "loss/special"]),
        lambda source: source.completions(RUN),
        lambda source: source.evaluated_suite(2),
        lambda source: source.evaluation(1),
        lambda source: source.evaluation(9999),
        lambda source: source.evaluation_artifacts(1),
        lambda source: list(source.evaluations(RUN, first=1000, last=2000)),
        lambda source: source.headline(LONG),
        lambda source: source.headlines([OTHER, RUN], ["loss/text", "loss/special"], points=3, last=3000, compare=5.0),
        lambda source: source.protocol(source.headlines([RUN])[0].series[0].protocol),
        lambda source: source.protocol("a\0b"),
        lambda source: source.run(RUN),
        lambda source: source.runs(),
        lambda source: source.status().queue.queued,
        lambda source: source.summary(RUN, ["loss/special"]),
    ],
)
def test_both_readers_have_the_same_answers(dashboard: Dashboard, ask: Callable[[ServiceReader], object]) -> None:
    def answer(source: ServiceReader) -> object:
        try:
            return ask(source)
        except EvalsvcError as error:
            return type(error), error.message

    with Client(dashboard.url) as client, dashboard.state.reading() as session:
        assert answer(OwnReader(dashboard.state, session)) == answer(client)


def test_a_bug_shows_no_trace(app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(own_reader, "runs_view", lambda *_: {}["a secret"])
    answer = app.http.get("/")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (500, "text/html")
    assert "secret" not in answer.text
    assert "a secret" in caplog.text, "the log has the trace"
