"""The client against the application, and against what is not one."""

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from app_in_process import App, app_in_process
from compared_runs import put
from long_lists import fill_lists
from pandas import DataFrame

from evalsvc.client import ArtifactContent, Client
from evalsvc.cluster.certificates import write_certificates
from evalsvc.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    RunBehind,
    ServiceUnreachable,
    Unauthorized,
    UnknownName,
    WrongState,
)
from evalsvc.messages import ShardError
from evalsvc.spec.documents.history import Point
from evalsvc.store.runs.listing import MAX_CHECKPOINTS
from evalsvc.store.tokens import create_token


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        yield app


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    with Client("http://evalsvc", transport=app.transport) as client:
        yield client


@pytest.mark.parametrize("end", ["/", "//"])
def test_an_address_may_end_in_slashes(app: App, end: str) -> None:
    with Client(f"http://evalsvc{end}", transport=app.transport) as client:
        assert client.suites()
        assert client.url == "http://evalsvc"


def test_from_post_to_history(app: App, client: Client, weights: Path) -> None:
    """Steps and tokens of a training may be integers of NumPy, which json does not know."""
    step, tokens = np.int64(25), np.int64(100)
    posted = client.submit("run-a", step, str(weights), suites=["loss"], tokens_seen=tokens, tags={"lr": "1"})  # type: ignore[arg-type]
    app.coordinator.work()
    finished = client.wait(posted.evaluations[0].id)
    assert finished.state == "succeeded"
    (series,) = client.history("run-a", ["loss/text"], x="tokens").series
    assert (series.x, series.value) == ([100], [1.5])
    assert client.history("run-a", variant="raw").names == client.history("run-a").names
    assert client.protocol(series.protocol) == {"limit": 1}
    assert client.runs()[0].name == "run-a"
    assert client.artifacts("run-a", kind="grid", step=25) == []
    assert client.run("run-a").checkpoints[0].step == 25
    assert client.checkpoint(posted.checkpoint.id).in_use is False


def test_lists_are_read_page_by_page(app: App, client: Client) -> None:
    """A client that read the first page alone would miss most of a long run, unseen."""
    rows = MAX_CHECKPOINTS + 1
    with app.store.transaction() as session:
        fill_lists(session, rows)
    run = "run-00001"
    steps = list(range(1, rows + 1))
    assert [item.step for item in client.run(run).checkpoints] == steps
    assert [item.step for item in client.checkpoints(run, variant="raw", first=2, last=9, page_size=3)] == steps[1:9]
    assert [item.id for item in client.evaluations(run, suite="loss", state="failed", page_size=400)] == steps[::-1]
    assert next(client.evaluations(page_size=1)).step == rows
    assert [item.metrics for item in client.protocols(run, ["loss/49*"], page_size=4)][-1] == ["loss/499"]
    assert len(client.runs()) == len(client.evaluation_artifacts(1, "grid")) == rows
    assert len(client.artifacts(run)) == 2 * rows - 1
    assert len(client.suites()) > rows


def test_a_run_that_is_behind_is_waited_for_within_patience(
    app: App, client: Client, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the service says, and not in a loop that asks all the time."""
    client.put_plan("run-a", {"suites": [{"suite": "loss", "every": 1}], "when_behind": "refuse"})
    client.submit("run-a", 25, str(weights))
    with pytest.raises(RunBehind, match="is behind") as caught:
        client.submit("run-a", 50, str(weights), patience=29)
    assert caught.value.retry_after == 30
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        app.coordinator.work()

    monkeypatch.setattr("evalsvc.client.checkpoints.time.sleep", sleep)
    assert client.submit("run-a", 50, str(weights), patience=31).evaluations[0].state == "queued"
    assert slept == [30]


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("9" * 400, 3600), ("-5", None), ("soon", None), ("²", None), ("", None)]
)
def test_what_another_service_says_of_the_wait_is_bounded(header: str, seconds: int | None) -> None:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        content = {"code": "run_behind", "detail": "behind"}
        return httpx2.Response(429, json=content, headers=[(b"retry-after", header.encode("latin-1"))])

    with (
        Client("http://evalsvc", transport=httpx2.MockTransport(answer)) as client,
        pytest.raises(RunBehind) as caught,
    ):
        client.submit("run-a", 1, "/a.pt")
    assert caught.value.retry_after == seconds


def test_comparisons_and_tables_for_notebooks(app: App, client: Client) -> None:
    for run, seed in (("run-a", 1), ("run-b", 2)):
        for step in (0, 10):
            put(app.store, run, step, seed, 0.9 - 0.04 * step * seed)
    (one,) = client.compare("run-a@0", "run-b@0:raw", ["arc/acc"], tasks=["language-0"], flipped=1).contrasts
    assert (one.metric, one.n, one.answers and one.answers.tests) == ("arc/acc", 40, 1)
    with pytest.raises(UnknownName, match="did you mean 'arc/acc'"):
        client.compare("run-a@0", "run-b@0", ["arc/akk"])
    found = client.compare_runs("run-a", "run-b", ["*/acc"], band="simultaneous")
    assert [curve.metric for curve in found.curves] == ["arc/acc", "piqa/acc"]
    assert client.compare_runs("run-b").a == "run-b@0"
    frame = DataFrame(client.table(["run-a"], ["arc/*"], variant="raw"))
    assert frame.groupby("metric")["step"].agg(list).to_dict() == {"arc/acc": [0, 10], "arc/bits_per_byte": [0, 10]}
    assert frame["value"].dtype == "float64"
    items = DataFrame(client.items(1, task="language-0", columns=["benchmark", "acc"]).items["language-0"])
    assert items.groupby("benchmark")["acc"].mean()["arc"] == frame["value"][0]


def test_a_long_history_is_imported_and_read_in_parts(client: Client) -> None:
    values = [1.5] * 98 + [1.25, "NaN"]
    series = {"metric": "lower/loss", "direction": "lower", "step": list(range(100)), "value": values}
    other = {"metric": "acc", "step": [50], "value": [0.5]}
    assert client.import_values("run-a", "elsewhere", [series, other]).new == 101
    assert client.import_values("run-a", "elsewhere", [series]).unchanged == 100
    with pytest.raises(Conflict, match="send replace=true"):
        client.import_values("run-a", "elsewhere", [{**series, "unit": "", "value": [2.5] * 100}])
    window = client.history("run-a", first=49, last=50).series
    assert [found.x for found in window] == [[50], [49, 50]], "it has both its ends"
    [bucketed] = client.buckets("run-a", ["*/loss"], first=50, last=99, points=5).series
    assert (bucketed.x, bucketed.min[-1]) == ([59, 69, 79, 89, 99], 1.25)
    pages = list(client.history_pages("run-a", ["lower/loss"], limit=40))
    assert [len(page.series[0].x) for page in pages] == [40, 40, 20]
    [summary] = client.summary("run-a", ["*/loss"], variant="raw")
    assert summary.count == 100
    assert summary.latest == Point(step=99, value="NaN", stderr=None, n=None, groups=None, import_=1)
    assert summary.best is not None
    assert (summary.best.step, summary.best.value) == (98, 1.25)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@127.0.0.1:1",
        "http://a/b:hunter2@127.0.0.1:1",
        "http://me:hunter2@x@127.0.0.1:1",
        "a:hunter2@x",
    ],
)
def test_nobody_answers(url: str) -> None:
    """Nor is a password in the address shown; why nobody answers is tested in test_connection_errors."""
    with Client(url) as client, pytest.raises(ServiceUnreachable) as caught:
        client.runs()
    assert "--url (EVALSVC_URL)" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(502, text="bad gateway"),
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(200, json=[]),
    ],
)
def test_a_stranger_answers(response: httpx2.Response) -> None:
    transport = httpx2.MockTransport(lambda request: response)
    with Client(transport=transport) as client, pytest.raises(ServiceUnreachable, match="is no evalsvc"):
        client.runs()


@pytest.mark.parametrize(("etag", "is_whole"), [(hashlib.sha256(b"png").hexdigest(), True), ("0" * 64, False)])
def test_the_content_of_an_artifact_is_checked(etag: str, is_whole: bool) -> None:
    """A proxy that cuts an answer short must not leave half an image behind as if it were whole."""
    headers = {"ETag": f'"{etag}"', "Content-Type": "image/png"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=b"png", headers=headers))
    with Client("http://evalsvc", transport=transport) as client:
        if is_whole:
            assert client.artifact_content(7) == ArtifactContent(b"png", "image/png", etag)
        else:
            with pytest.raises(ServiceUnreachable, match=r"/v1/artifacts/7 .* came damaged"):
                client.artifact_content(7)


def test_an_answer_of_another_version() -> None:
    """Fields that this version does not know do no harm; one that it needs and lacks is named."""
    run = {"name": "run-a", "checkpoints": 1, "last_step": 5, "values": 0, "created_at": "2026", "colour": "red"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"runs": [run], "pages": 1}))
    with Client(transport=transport) as client:
        assert client.runs()[0].last_step == 5
        del run["values"]
        with pytest.raises(
            ServiceUnreachable, match=r"of this version \(GET /v1/runs: runs.0.values: field required\)"
        ):
            client.runs()


def test_the_token_is_shown_to_the_service_and_to_nobody_else() -> None:
    """A service, or who answers in its place, must not be able to have it sent on. The line break is of its file."""
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.url.host, request.headers.get("authorization")))
        return httpx2.Response(307, headers={"Location": "http://evil.example/v1/runs"}, json={})

    with Client("http://evalsvc", token="evalsvc_t\n", transport=httpx2.MockTransport(answer)) as client:
        with pytest.raises(ServiceUnreachable, match="no evalsvc of this version"):
            client.runs()
        assert "evalsvc_t" not in repr(client)
    assert asked == [("evalsvc", "Bearer evalsvc_t")]


def test_what_the_door_says_is_raised_as_its_own(app: App, client: Client) -> None:
    with app.store.transaction() as session:
        token = create_token(session, "ci", "read")
    with pytest.raises(Unauthorized, match="EVALSVC_TOKEN"):
        client.runs()
    with Client("http://evalsvc", token=token, transport=app.transport) as client:
        assert client.runs() == []
        with pytest.raises(Forbidden, match=r"PUT /v1/suites/a needs submit"):
            client.put_suite("a", "tasks: []")


@pytest.mark.parametrize(
    ("url", "verifies"), [("https://evalsvc", True), ("HTTPS://evalsvc", True), ("http://evalsvc", False)]
)
def test_certificates_are_verified_wherever_there_are_some(
    url: str, verifies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(httpx2, "Client", lambda **options: given.update(options))
    Client(url)
    assert (given["verify"] and given["verify"].verify_mode == ssl.CERT_REQUIRED) is verifies


def test_what_is_known_before_the_end(app: App, client: Client, weights: Path) -> None:
    app.coordinator.looks = [(1, 4), (2, 8)]
    number = client.submit("run-a", 25, str(weights), suites=["loss"]).evaluations[0].id
    assert client.interim(number) == {}
    seen: list[str] = []
    with pytest.raises(DeadlineExceeded, match=f"evaluation {number} is queued after 0 s; it goes on"):
        client.wait(number, every=0.01, timeout=0, report=lambda document: seen.append(document.state))
    assert set(seen) == {"queued"}
    for _ in ("plan", "run", "look"):
        app.coordinator.step()
    (interim,) = client.interim(number).values()
    assert (interim.done, interim.metrics[0].value) == (4, 1.25)
    assert client.history("run-a").series == []
    app.coordinator.work()
    assert client.interim(number) == {}


def test_cancel_retry_and_evaluate(app: App, client: Client, weights: Path) -> None:
    posted = client.submit("run-a", 25, str(weights), suites=[])
    number = client.evaluate(posted.checkpoint.id, "loss", priority=1).id
    assert client.cancel(number).state == "cancelled"
    assert client.retry(number).state == "queued"
    app.coordinator.error = ShardError("non_finite", "layer 3")
    app.coordinator.work()
    error = client.wait(number).error
    assert error is not None
    assert error.code == "non_finite"
    with pytest.raises(WrongState, match="is failed"):
        client.cancel(number)


def test_suites_plans_bases_and_results(app: App, client: Client, weights: Path) -> None:
    assert client.put_suite("mine", "tasks: [{kind: loss, data: /a.jsonl}]").source == "put"
    assert client.put_suite("other", {"tasks": [{"kind": "loss", "data": "/b.jsonl"}]}).name == "other"
    assert {"mine", "other", "loss"} <= {suite.name for suite in client.suites()}
    assert client.suite("mine").tasks[0]["data"] == "/a.jsonl"
    plan = client.put_plan("run-z", {"suites": [{"suite": "mine", "every": 5}], "when_behind": "newest"})
    assert client.plan("run-z") == plan == client.put_plan("run-z", plan)
    number = client.submit("run-a", 25, str(weights), suites=["loss"]).evaluations[0].id
    assert client.results("run-a", 25).state == "queued"
    app.coordinator.work()
    document = client.results("run-a", 25, variant="raw", suite="loss")
    assert (document.state, document.metrics[0].value) == ("succeeded", 1.5)
    assert client.items(number, task="text").items == {"text": []}
    assert client.completions("run-a", variant=None, prompt=None) == []
    assert DataFrame(client.table(metrics=["loss/image"]))["value"].isna().tolist() == [True]
    assert client.set_base("run-b", 25, of="run-a").checkpoint == 1
    assert client.run("run-b").base.run == "run-a"
    with pytest.raises(UnknownName, match="the nearest steps are 25"):
        client.results("run-a", 26)
    found = client.submit(None, None, "avg(run-a@25)").checkpoint
    assert (found.run, found.step, found.uri) == ("run-a", 25, "avg(run-a@25)")
    with pytest.raises(InvalidRequest, match="run is missing; step is missing"):
        client.submit(None, None, str(weights))


def test_the_authority_is_that_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    pem = tmp_path / "ca.pem"
    with monkeypatch.context() as patch:
        patch.setattr(httpx2, "Client", lambda **options: given.update(options))
        patch.setenv("SSL_CERT_FILE", str(write_certificates(tmp_path)["ca.pem"]))
        Client("https://evalsvc")
        [found] = given["verify"].get_ca_certs()
        assert ("commonName", "evalsvc cluster") in [part[0] for part in found["subject"]]
        pem.write_text("nothing")
        with pytest.raises(InvalidRequest, match="SSL_CERT_FILE is no file of certificates"):
            Client("https://evalsvc")
    for path, words in ((pem, "no file of certificates"), (tmp_path / "nowhere.pem", "no such file")):
        with pytest.raises(InvalidRequest, match=words):
            Client("https://evalsvc", ca=str(path))
