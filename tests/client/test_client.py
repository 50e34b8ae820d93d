"""The client against the application, and against what is not one."""

import hashlib
import itertools
import json
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from app_in_process import App, app_in_process
from compared_runs import put
from history_reference import Point as Value
from history_reference import imported, random_history, write
from long_lists import fill_lists
from pandas import DataFrame
from posts_and_results import act
from signed_in import new_token

from evalsvc.client import ArtifactContent, Client, history
from evalsvc.cluster.certificates import write_certificates
from evalsvc.errors import (
    CheckpointChanged,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotACheckpoint,
    RunBehind,
    ServiceUnreachable,
    Unauthorized,
    UnknownName,
    WrongState,
)
from evalsvc.messages import ShardError
from evalsvc.spec.documents import Progress
from evalsvc.spec.documents.history import Point
from evalsvc.spec.protocol import Protocol
from evalsvc.store.history.imports import import_values
from evalsvc.store.pages import MAX_VALUES
from evalsvc.store.runs.listing import MAX_CHECKPOINTS
from evalsvc.store.views import LiveTask

Handle = Callable[[httpx2.Request], httpx2.Response]
Between = Callable[[Callable[[httpx2.Request, Handle], httpx2.Response]], None]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data") as app:
        yield app


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    with Client("http://evalsvc//", transport=app.transport) as client:
        assert client.url == "http://evalsvc", "an address may end in slashes"
        yield client


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


def test_a_run_behind_is_waited_for(app: App, client: Client, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the service says, and not in a loop that asks all the time."""
    client.put_plan("run-a", {"suites": [{"suite": "loss", "every": 1}], "when_behind": "refuse"})
    client.submit("run-a", 25, str(weights), spool="link")
    with pytest.raises(RunBehind, match=r"'run-a' is behind.*nothing was stored.*post step 50 again in 30 s") as caught:
        client.submit("run-a", 50, str(weights), spool="link", patience=29)
    assert caught.value.retry_after == 30
    assert [item.step for item in client.run("run-a").checkpoints] == [25]
    assert [folder.name for folder in (app.settings.data_path / "spool").iterdir() if folder.is_dir()] == ["1"]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        app.coordinator.work()

    monkeypatch.setattr("evalsvc.client.checkpoints.time.sleep", sleep)
    assert client.submit("run-a", 50, str(weights), patience=31).evaluations[0].state == "queued"
    assert slept == [30]


def test_what_another_service_says_of_the_wait_is_bounded() -> None:
    content = {"code": "run_behind", "detail": "behind"}
    for header, seconds in {"7": 7, "9" * 400: 3600, "-5": None, "soon": None, "²": None, "": None}.items():
        given = [(b"retry-after", header.encode("latin-1"))]
        transport = httpx2.MockTransport(lambda _, given=given: httpx2.Response(429, json=content, headers=given))
        with Client("http://evalsvc", transport=transport) as client, pytest.raises(RunBehind) as caught:
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


def test_a_history_of_several_pages_is_that_of_one_answer(
    app: App, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history with more than 200,000 values was refused, and pages lacked series without values in the window."""
    for step in (1, 3):
        put(app.store, "run-a", step, step, 0.5, tokens_seen=step)
    write(app.store, random_history(1))
    for variant, limit in itertools.product(("raw", "ema"), (2, 1)):
        series = imported("lower/0", [Value(5, 1.0, None, 3)], variant=variant, protocol=Protocol({"limit": limit}))
        act(app.store, import_values, "run-a", "test", [series], True)
    ask = [partial(client.history, "run-a", **window) for window in ({}, {"first": 5, "last": 90}, {"x": "tokens"})]
    whole = [read() for read in ask]
    monkeypatch.setattr(history, "PAGE_VALUES", 3)
    assert [read() for read in ask] == whole
    assert len(whole[0].series) > len([series for series in whole[1].series if series.x]) > 3
    monkeypatch.undo()
    assert history.PAGE_VALUES == MAX_VALUES


def test_nobody_answers() -> None:
    """Nor is a password in the address shown; why nobody answers is tested in test_connection_errors."""
    for name in ("http://me:hunter2@127.0.0.1:1", "http://a/b:hunter2@127.0.0.1:1", "a:hunter2@x"):
        with Client(name) as client, pytest.raises(ServiceUnreachable, match=r"--url \(EVALSVC_URL\)") as caught:
            client.runs()
        assert "hunter2" not in caught.value.message


def test_a_stranger_answers() -> None:
    for response in (
        httpx2.Response(200, text="<html>"),
        httpx2.Response(502, text="bad gateway"),
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(200, json=[]),
    ):
        transport = httpx2.MockTransport(lambda _request, response=response: response)
        with Client(transport=transport) as client, pytest.raises(ServiceUnreachable, match="is no evalsvc"):
            client.runs()


def test_the_content_of_an_artifact_is_checked() -> None:
    """A proxy that cuts an answer short must not leave half an image behind as if it were whole."""
    digest, content = hashlib.sha256(b"png").hexdigest(), [b"png", b"pn"]
    headers = {"ETag": f'"{digest}"', "Content-Type": "image/png"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=content.pop(0), headers=headers))
    with Client("http://evalsvc", transport=transport) as client:
        picture = client.artifact_content(7)
        assert picture == ArtifactContent(b"png", "image/png", digest)
        assert picture._repr_png_() == b"png", "a notebook shows it"
        with pytest.raises(ServiceUnreachable, match=r"/v1/artifacts/7 .* came damaged"):
            client.artifact_content(7)


def test_an_answer_of_another_version() -> None:
    """Fields that this version does not know do no harm; one that it needs and lacks is named."""
    run = {"name": "run-a", "checkpoints": 1, "last_step": 5, "values": 0, "created_at": "2026", "colour": "red"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"runs": [run], "pages": 1}))
    with Client(transport=transport) as client:
        assert client.runs()[0].last_step == 5
        del run["values"]
        words = r"of this version \(GET /v1/runs: runs.0.values: field required\)"
        with pytest.raises(ServiceUnreachable, match=words):
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
    token = new_token(app, "read")
    with pytest.raises(Unauthorized, match="EVALSVC_TOKEN"):
        client.runs()
    with Client("http://evalsvc", token=token, transport=app.transport) as client:
        assert client.runs() == []
        with pytest.raises(Forbidden, match=r"PUT /v1/suites/a needs submit"):
            client.put_suite("a", "tasks: []")


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
    app.coordinator.tasks = {1: LiveTask(done=1, per_second=0.5)}
    progress = Progress(done=5, total=8, unit="sequences", per_second=0.5, seconds_left=6.0)
    assert client.evaluation(number).tasks[0].progress == progress
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


def test_certificates_are_verified_as_by_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    pem = tmp_path / "ca.pem"
    with monkeypatch.context() as patch:
        patch.setattr(httpx2, "Client", lambda **options: given.update(options))
        for url, verifies in {"https://evalsvc": True, "HTTPS://evalsvc": True, "http://evalsvc": False}.items():
            Client(url)
            assert (given["verify"] and given["verify"].verify_mode == ssl.CERT_REQUIRED) is verifies
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


@pytest.fixture
def taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[App, Client]]:
    """An application that takes uploads, and a client that sends small parts and waits for nothing."""
    for name, value in {"PART_BYTES": 1000, "SMALLEST_PART": 100, "FIRST_DELAY": 0.0, "LONGEST_DELAY": 0.0}.items():
        monkeypatch.setattr(f"evalsvc.client.uploads.{name}", value)
    with (
        app_in_process(tmp_path / "taking", upload_bytes=10_000_000) as app,
        Client("http://evalsvc", transport=app.transport) as client,
    ):
        yield app, client


@pytest.fixture
def between(taking: tuple[App, Client], monkeypatch: pytest.MonkeyPatch) -> Between:
    """Puts a function between client and application, which gets each request and what answers it."""
    transport = taking[0].transport
    handle = transport.handle_request
    return lambda answer: monkeypatch.setattr(transport, "handle_request", lambda request: answer(request, handle))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_7.pt"
    path.write_bytes(bytes(range(256)) * 20)
    return path


def uploaded(app: App) -> bytes:
    """What the spool has of the only checkpoint."""
    [path] = (app.settings.data_path / "spool" / "1").iterdir()
    return path.read_bytes()


def test_a_file_is_sent_and_posted(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking
    said: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"model": "open_lm_160m", "upload": True, "report": lambda *report: said.append(report)}
    posted = client.submit("run-a", 25, str(file), suites=["loss"], **options)
    assert uploaded(app) == file.read_bytes()
    read = [("reading", min(done, 5120), 5120) for done in range(1000, 6001, 1000)]
    assert said == [*read, *(("sending", offset, 5120) for offset in range(0, 5120, 1000))]
    assert client.submit("run-a", 25, str(file), suites=["loss"], **options) == posted
    assert said[12:] == read, "what the service has is not sent again"


def test_an_upload_goes_on_after_every_failure(taking: tuple[App, Client], file: Path, between: Between) -> None:
    """Requests and answers are lost, a proxy answers in the place of the service, parts are damaged on the way."""
    app, client = taking
    count = 0

    def unreliable(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise httpx2.ConnectError("connection refused")
        if count % 7 == 0:
            handle(request)
            raise httpx2.ReadError("connection reset")
        if count % 11 == 0:
            return httpx2.Response(502, text="<html>Bad Gateway</html>")
        if count % 13 == 0 and request.method == "PATCH":
            damaged = httpx2.Request("PATCH", request.url, headers=request.headers, content=request.content[::-1])
            return handle(damaged)
        return handle(request)

    between(unreliable)
    uri = client.upload(str(file))
    assert count > 13
    between(lambda request, handle: handle(request))
    client.submit("run-a", 25, uri, model="open_lm_160m")
    assert uploaded(app) == file.read_bytes()


def test_a_connection_that_breaks_makes_progress(taking: tuple[App, Client], file: Path, between: Between) -> None:
    """A part with a checksum counts as a whole, so a connection that carries 300 bytes needs smaller parts."""
    sent = []

    def narrow(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        sent.append(len(request.content))
        if len(request.content) > 300:
            raise httpx2.WriteError("broken pipe")
        return handle(request)

    between(narrow)
    taking[1].upload(str(file))
    assert sum(sent) < 5 * 5120


def test_another_process_finds_the_upload_and_goes_on(taking: tuple[App, Client], file: Path) -> None:
    app, client = taking

    class Killed(Exception):
        pass

    def die(what: str, done: int, size: int) -> None:
        if (what, done) == ("sending", 3000):
            raise Killed

    with pytest.raises(Killed):
        client.upload(str(file), report=die)
    said: list[tuple[str, int, int]] = []
    with Client("http://evalsvc", transport=app.transport) as other:
        other.upload(str(file), report=lambda *report: said.append(report))
    assert [done for what, done, _ in said if what == "sending"] == [3000, 4000, 5000]


def test_an_upload_is_given_up_in_time(taking: tuple[App, Client], file: Path, between: Between) -> None:
    def refuse(request: httpx2.Request, handle: Handle) -> httpx2.Response:
        if request.method == "PATCH":
            raise httpx2.ConnectError("connection refused")
        return handle(request)

    between(refuse)
    with pytest.raises(ServiceUnreachable, match="connection refused"):
        taking[1].upload(str(file), patience=0.05)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(taking: tuple[App, Client], tmp_path: Path) -> None:
    """250 MB were read for seconds, and refused then."""
    _app, client = taking
    large, said = tmp_path / "large.pt", []
    with large.open("wb") as stream:
        stream.truncate(10_000_001)
    for send in (client.upload, partial(client.submit, "run-a", 25, model="open_lm_160m", upload=True)):
        with pytest.raises(InvalidRequest, match=r"large.pt has 10,000,001 bytes, .* together may take 10,000,000"):
            send(str(large), report=lambda *report: said.append(report))
    assert said == []


def test_a_file_that_cannot_be_sent(taking: tuple[App, Client], file: Path, tmp_path: Path) -> None:
    app, client = taking
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "nowhere", "no such file.*; "),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "pipe", "no file on a disk"),
    ):
        with pytest.raises(InvalidRequest, match=f"{path}.*{words}"):
            client.submit("run-a", 25, str(path), upload=True)
    with pytest.raises(InvalidRequest, match="model is missing"):
        client.submit("run-a", 25, str(file), upload=True)
    with pytest.raises(CheckpointChanged, match="was announced"):
        client.upload(str(file), sha256="0" * 64)
    assert os.listdir(app.settings.uploads_path) == []


@pytest.mark.parametrize(
    ("what", "done", "size"), [("reading", 2000, 2500), ("sending", 2000, 2500), ("sending", 5000, 9000)]
)
def test_a_changing_file_is_noticed(taking: tuple[App, Client], file: Path, what: str, done: int, size: int) -> None:
    _app, client = taking

    def write(*report: object) -> None:
        if report == (what, done, 5120):
            os.truncate(file, size)

    with pytest.raises(CheckpointChanged, match="once it is complete"):
        client.upload(str(file), report=write)


@pytest.fixture
def folder(tmp_path: Path, file: Path) -> Path:
    """A folder as Hugging Face's trainer leaves it, with two equal parts."""
    path = tmp_path / "checkpoint-25"
    path.mkdir()
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "llama", "vocab_size": 64, "max_position_embeddings": 8, **shape}
    (path / "config.json").write_text(json.dumps(config))
    for number in (1, 2):
        shutil.copyfile(file, path / f"model-0000{number}-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    (path / "optimizer.pt").write_bytes(b"x" * 50_000)
    return path


class TestFolders:
    def test_a_folder_is_sent_and_posted(self, taking: tuple[App, Client], folder: Path) -> None:
        """It was refused: a sharded checkpoint could not reach a service on another machine at all."""
        app, client = taking
        said: list[tuple[str, int, int]] = []
        options: dict[str, Any] = {"upload": True, "report": lambda *report: said.append(report)}
        posted = client.submit("run-a", 25, str(folder), suites=["loss"], **options)
        [kept] = (app.settings.data_path / "spool" / "1").iterdir()
        names = sorted(path.name for path in folder.iterdir() if path.name != "optimizer.pt")
        assert sorted(path.name for path in kept.iterdir()) == names
        assert all((kept / name).read_bytes() == (folder / name).read_bytes() for name in names)
        size = sum((folder / name).stat().st_size for name in names)
        assert {total for _, _, total in said} == {size}
        assert max(done for what, done, _ in said if what == "sending") < size - 5000, "equal files are sent once"
        assert os.listdir(app.settings.uploads_path) == []
        count = len(said)
        assert client.submit("run-a", 25, str(folder), suites=["loss"], **options) == posted
        assert {what for what, _, _ in said[count:]} == {"reading"}, "what the service has is not sent again"
        assert os.listdir(app.settings.uploads_path) == []

    def test_another_process_goes_on_with_the_next_file(self, taking: tuple[App, Client], folder: Path) -> None:
        app, client = taking
        sent: list[int] = []
        start = sum(path.stat().st_size for path in folder.glob("*.json"))

        def note(what: str, done: int, _size: int) -> None:
            if what == "sending":
                sent.append(done)

        def die(what: str, done: int, size: int) -> None:
            if (what, done - start) == ("sending", 3000):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.upload(str(folder), report=die)
        with Client("http://evalsvc", transport=app.transport) as other:
            uri = other.upload(
                str(folder), report=lambda what, done, _: sent.append(done) if what == "sending" else None
            )
        assert sent[2:] == [*(start + offset for offset in (3000, 4000, 5000))], "and the equal file is not sent"
        assert client.submit("run-a", 25, uri).checkpoint.spool_state == "ready"

    def test_an_upload_that_another_post_took_is_sent_again(
        self, taking: tuple[App, Client], folder: Path, between: Between
    ) -> None:
        """Two steps share a frozen part, and the first post takes the upload of both."""
        app, client = taking
        posts: list[int] = []

        def take(request: httpx2.Request, handle: Handle) -> httpx2.Response:
            if request.url.path == "/v1/checkpoints":
                posts.append(1)
                if len(posts) == 2:
                    [weights] = (path for path in app.settings.uploads_path.iterdir() if path.stat().st_size == 5120)
                    weights.unlink()
            return handle(request)

        between(take)
        client.submit("run-a", 25, str(folder), upload=True)
        assert len(posts) == 3

    def test_a_mistake_is_shown_before_the_weights_are_sent(self, taking: tuple[App, Client], folder: Path) -> None:
        app, client = taking
        with pytest.raises(UnknownName, match="did you mean 'loss'"):
            client.submit("run-a", 25, str(folder), suites=["los"], upload=True)
        assert sum(path.stat().st_size for path in app.settings.uploads_path.iterdir()) < 1000
        (folder / "config.json").unlink()
        client.submit("run-a", 25, str(folder), model="open_lm_160m", upload=True)
        for number, path in enumerate([*folder.glob("model*")]):
            path.rename(folder / f"{number}.pt")
        with pytest.raises(NotACheckpoint, match=r"upload:\w+ is a folder without .*: post one of these files"):
            client.submit("run-a", 50, str(folder), model="open_lm_160m", upload=True)

    def test_a_folder_that_cannot_be_sent(self, taking: tuple[App, Client], folder: Path, tmp_path: Path) -> None:
        _, client = taking
        with (folder / "model-00002-of-00002.safetensors").open("wb") as stream:
            stream.truncate(10_000_001)
        said: list[object] = []
        with pytest.raises(InvalidRequest, match=r"checkpoint-25 has 10,0\d\d,\d\d\d bytes, .* may take 10,000,000"):
            client.submit("run-a", 25, str(folder), upload=True, report=lambda *report: said.append(report))
        assert said == [], "it is refused before it is read"
        (tmp_path / "nothing").mkdir()
        (tmp_path / "nothing" / "optimizer.pt").write_bytes(b"x")
        with pytest.raises(InvalidRequest, match=r"nothing is empty .states of a training job"):
            client.upload(str(tmp_path / "nothing"))

    @pytest.mark.parametrize("what", ["reading", "sending"])
    @pytest.mark.parametrize("change", ["write", "unlink"])
    def test_a_changing_folder_is_noticed(
        self, taking: tuple[App, Client], folder: Path, what: str, change: str
    ) -> None:
        last = folder / "model-00002-of-00002.safetensors"

        def work(activity: str, done: int, _size: int) -> None:
            if activity == what and last.exists():
                last.unlink() if change == "unlink" else last.write_bytes(b"other")

        with pytest.raises(CheckpointChanged, match=f"{last} was written to while it was sent"):
            taking[1].upload(str(folder), report=work)


def test_a_proxy_that_refuses_parts_is_named(taking: tuple[App, Client], file: Path, between: Between) -> None:
    too_large = httpx2.Response(413, text="<html>Request Entity Too Large</html>")
    between(lambda request, handle: too_large if request.method == "PATCH" else handle(request))
    with pytest.raises(InvalidRequest, match="client_max_body_size"):
        taking[1].upload(str(file))
