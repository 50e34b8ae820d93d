"""Pages read the store in their own thread, what a client gets from the routes."""

from collections.abc import Callable, Iterator

import pytest
from app_in_process import App
from dashboard_history import LONG, OTHER, RUN, Dashboard, dashboard_on_port

from evalsvc.api import own_reader
from evalsvc.api.own_reader import OwnReader
from evalsvc.client import Client
from evalsvc.client.reader import ServiceReader
from evalsvc.errors import EvalsvcError


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
def test_both_readers_have_the_same_answers_and_errors(
    dashboard: Dashboard, ask: Callable[[ServiceReader], object]
) -> None:
    def answer(source: ServiceReader) -> object:
        try:
            return ask(source)
        except EvalsvcError as error:
            return type(error), error.message

    with Client(dashboard.url) as client, dashboard.state.reading() as session:
        assert answer(OwnReader(dashboard.state, session)) == answer(client)


def test_a_bug_is_a_page_without_its_trace(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(own_reader, "runs_view", fail)
    answer = app.http.get("/")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (500, "text/html")
    assert "secret" not in answer.text
    assert "a secret" in caplog.text, "the log has the trace"
