"""Following an evaluation: nothing is missed, nothing is left behind, and nobody else has to wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import pytest
from app_in_process import App, app_on_port, refused
from machines import wait_for
from queue_steps import dispatched, enter, metric, plan, ran, result, store_result, submission, suite
from service_process import ServiceProcess

from evalsvc.api.routes import events
from evalsvc.client import Client
from evalsvc.spec.documents import Progress
from evalsvc.store.queue.stages import cancel_evaluation
from evalsvc.store.session import Store
from evalsvc.store.views import LiveTask


class Service(NamedTuple):
    """A service on a port with an evaluation that waits, and the streams that it sends."""

    url: str
    state: Any
    streams: events.Followers
    store: Store
    evaluation: int

    def cancel(self) -> None:
        with self.store.transaction() as session:
            cancel_evaluation(session, self.evaluation)

    def connections_in_use(self) -> int:
        return int(self.state.store.engine.pool.checkedout())


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(events, "LOOK_EVERY", 0.05)
    made: list[events.Followers] = []
    followers = events.Followers
    monkeypatch.setattr(events, "Followers", lambda state: made.append(followers(state)) or made[0])
    with app_on_port(tmp_path / "data") as (url, state):
        (evaluation,) = enter(state.store, submission(), suite())
        yield Service(url, state, made[0], state.store, evaluation)


def frames(text: str) -> list[dict[str, str]]:
    """Events as they were sent, as a browser reads them."""
    blocks = [[line for line in block.split("\n") if line and line[0] != ":"] for block in text.split("\n\n")]
    return [fields for fields in (dict(line.split(": ", 1) for line in block) for block in blocks) if "data" in fields]


@contextmanager
def following(url: str, evaluation: int) -> Iterator[Iterator[str]]:
    """The lines of a stream of a client of its own."""
    address = f"{url}/v1/evaluations/{evaluation}/events"
    with httpx2.stream("GET", address, timeout=60, trust_env=False) as response:
        assert response.status_code == 200
        yield response.iter_lines()


@contextmanager
def heard(url: str, evaluation: int) -> Iterator[list[str]]:
    """The lines so far of a stream that a thread reads to its end: closed under it, a socket is left open at times."""
    with following(url, evaluation) as lines:
        sent: list[str] = []
        reader = threading.Thread(target=lambda: sent.extend(lines))
        reader.start()
        yield sent
        reader.join(60)
        assert not reader.is_alive()


def test_an_evaluation_that_is_over(app: App, weights: Path) -> None:
    """A browser comes back when a stream ends, for ever, unless it is answered 204."""
    app.post(weights, suites=["loss"]).raise_for_status()
    path = "/v1/evaluations/1/events"
    newest = "the newest event of evaluation 1 is 1"
    for value, words in (("-1", "input should be"), ("x", "input should be"), ("5", newest)):
        for given in ({"params": {"last_event_id": value}}, {"headers": {"Last-Event-ID": value}}):
            refused(app.http.get(path, **given), 422, "invalid_request", words)
    app.coordinator.work()
    response = app.http.get(path)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert "content-encoding" not in response.headers
    sent = frames(response.text)
    assert [int(event["id"]) for event in sent[:-1]] == list(range(1, len(sent)))
    assert sent[0]["event"] == "state"
    assert '"state":"queued"' in sent[0]["data"]
    assert (sent[-1]["event"], sent[-1]["id"]) == ("end", sent[-2]["id"])
    assert response.text.startswith("retry: 2000\n\n")
    last = len(sent) - 1
    assert app.http.get(path, headers={"Last-Event-ID": str(last)}).status_code == 204
    assert app.http.get(path, params={"last_event_id": last}).status_code == 204
    # The address stays the same when a browser comes back; what it has by then is in the header.
    some = app.http.get(path, params={"last_event_id": 1}, headers={"Last-Event-ID": str(last - 1)})
    assert [event["id"] for event in frames(some.text)] == [str(last), str(last)]


def test_it_is_told_as_it_happens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, what a look found, and how far it is, in their order."""
    monkeypatch.setattr(events, "PROGRESS_EVERY", 3600.0)
    with Client(service.url) as client:
        told = client.events(service.evaluation)
        first = next(told)
        assert (first.id, first.event, first.data.state) == (1, "state", "queued")
        assert store_result(service.store, dispatched(service.store), plan(2, looks=[1]))
        assert [next(told).data.state for _ in range(2)] == ["running", "running"]
        assert store_result(service.store, dispatched(service.store), ran(sum=1))
        assert store_result(service.store, dispatched(service.store), result(metric(1.25)))
        interim = next(told)
        assert (interim.event, interim.data.done) == ("interim", 10)
        assert [metric.value for metric in interim.data.metrics or []] == [1.25]
        service.state.coordinator.tasks = {1: LiveTask(5, 2.5)}
        progress = next(told)
        assert progress.data.tasks == {
            "loss-0": Progress(done=15, total=20, unit="sequences", per_second=2.5, seconds_left=2.0)
        }
        assert (progress.event, progress.id) == ("progress", None)
        assert store_result(service.store, dispatched(service.store), ran(sum=1))
        assert store_result(service.store, dispatched(service.store), result(metric(1.5)))
        for done in range(6, 12):
            service.state.coordinator.tasks = {1: LiveTask(done, 2.5)}
            time.sleep(0.1)
        # Progress is not sent at every look.
        assert [(event.event, event.data.state) for event in told] == [
            (kind, "succeeded") for kind in ("task", "state", "end")
        ]


def test_a_silent_stream_is_heard_of_and_does_not_last_long(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies close what is silent for a minute; a token that was revoked would show what it likes for long."""
    monkeypatch.setattr(events, "LIFETIME", 0.5)
    monkeypatch.setattr(events, "HEARTBEAT_EVERY", 0.05)
    with following(service.url, service.evaluation) as lines:
        sent = list(lines)
    assert sent.count(": still here") >= 3
    assert "event: end" not in sent
    wait_for(lambda: len(service.streams) == 0, "the streams")


@pytest.mark.usefixtures("many_cases")
def test_the_client_takes_up_a_stream_that_broke_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It misses nothing, and ends where all was told."""
    monkeypatch.setattr(events, "LIFETIME", 0.5)
    monkeypatch.setattr(events, "HEARTBEAT_EVERY", 0.1)
    with Client(service.url) as client:
        told = client.events(service.evaluation)
        assert next(told).id == 1
        time.sleep(1)
        service.cancel()
        assert [event.id for event in told] == [2, 3, 3]
        assert [event.id for event in client.events(service.evaluation, after=2)] == [3, 3]
        assert list(client.events(service.evaluation, after=3)) == []


@pytest.mark.usefixtures("child_process")
def test_a_service_that_stops_does_not_wait_for_its_streams(tmp_path: Path) -> None:
    for name in ("epoch_1.pt", "ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    options = ("--devices", "cpu", "--scheduler", "tls://127.0.0.1:1", "--tls", str(tmp_path))
    service = ServiceProcess(tmp_path / "data", *options)
    try:
        service.start()
        (evaluation,) = service.post("run-a", 1, tmp_path / "epoch_1.pt", ["loss"])
        with following(service.url, evaluation) as lines:
            assert next(lines) == "retry: 2000"
            service.stop()
            assert "event: end" not in list(lines)
        assert "Traceback" not in service.log.read_text()
    finally:
        service.stop()


def open_sockets() -> int:
    return len(psutil.Process().net_connections("tcp"))


def test_clients_that_come_and_go_leave_nothing_behind(service: Service) -> None:
    """Each left a thread, a connection or a session behind where its end was not noticed."""

    def come_and_go(clients: int) -> None:
        with ExitStack() as stack:
            streams = [stack.enter_context(following(service.url, service.evaluation)) for _ in range(clients)]
            assert [next(lines) for lines in streams] == ["retry: 2000"] * clients
            wait_for(lambda: len(service.streams) == clients, "the streams")
            held = []
            for _ in range(20):
                held.append(service.connections_in_use())
                assert httpx2.get(f"{service.url}/v1/runs", trust_env=False, timeout=60).status_code == 200
            assert min(held) == 0, "a stream that waits holds no connection to the database"
        wait_for(lambda: len(service.streams) == 0 and service.streams._looking is None, "the streams")

    come_and_go(3)
    before = (threading.active_count(), open_sockets())
    come_and_go(50)
    wait_for(lambda: open_sockets() <= before[1], "the streams")
    assert service.connections_in_use() == 0
    # The threads that read for streams are few, and are used again.
    assert threading.active_count() <= before[0] + events.READERS


def test_too_many_streams_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STREAMS", 2)
    path = f"{service.url}/v1/evaluations/{service.evaluation}/events"
    with following(service.url, service.evaluation) as one, following(service.url, service.evaluation) as two:
        next(one), next(two)
        response = httpx2.get(path, trust_env=False)
        refused(response, 429, "rate_limited", "2 event streams are open, which is the limit; try again in 30 s")
        assert response.headers["retry-after"] == "30"
    wait_for(lambda: len(service.streams) == 0, "the streams")
    with following(service.url, service.evaluation) as lines:
        assert next(lines) == "retry: 2000"


def test_streams_outlast_a_database_that_is_away(service: Service) -> None:
    """The followers of an evaluation are not to be cut off by what the service itself waits for."""
    with heard(service.url, service.evaluation) as sent:
        wait_for(lambda: "event: state" in sent, "the streams")
        with service.store.engine.execution_options(writes=True).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE evaluation_events RENAME TO gone")
            connection.exec_driver_sql("UPDATE evaluations SET event_count = event_count + 1")
        time.sleep(0.5)
        with service.store.engine.execution_options(writes=True).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO evaluation_events")
            connection.exec_driver_sql("UPDATE evaluations SET event_count = event_count - 1")
        service.cancel()
    assert "event: end" in sent
