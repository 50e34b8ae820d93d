"""The service's own metrics: right, the same after a restart, and cheap."""

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import sqlalchemy as sa
from app_in_process import App, app_in_process
from prometheus_client.parser import text_string_to_metric_families
from queue_steps import dispatched, enter, evaluate_whole, metric, store_result, submission, suite

from evalsvc import __version__
from evalsvc.api.routes import runs
from evalsvc.api.routes.prometheus import FAMILIES
from evalsvc.installation import code_digest, find_commit
from evalsvc.messages import ShardError, ShardResult
from evalsvc.store.queue.attempts import give_up
from evalsvc.store.queue.status import read_totals
from evalsvc.store.queue.transitions import SECONDS, count_attempt
from evalsvc.store.session import Store
from evalsvc.store.tables import AttemptTotal
from evalsvc.store.views import LiveTask

ROOT = Path(__file__).parents[3]


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(app: App) -> Samples:
    """Samples by name and sorted labels, read by Prometheus' own parser."""
    response = app.http.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def value(app: App | Samples, name: str, **labels: str) -> float | None:
    samples = scraped(app) if isinstance(app, App) else app
    return samples.get((f"evalsvc_{name}", tuple(sorted(labels.items()))))


def fail(store: Store, code: str) -> None:
    assert store_result(store, dispatched(store), ShardResult(error=ShardError(code, "…")))


def test_what_waits_and_what_was_done(app: App) -> None:
    enter(app.store, submission(25), suite())
    evaluate_whole(app.store, metric(1.5), shards=3)
    enter(app.store, submission(50), suite())
    fail(app.store, "invalid_data")
    enter(app.store, submission(75), suite(tasks=2))
    assignment = dispatched(app.store)
    with app.store.transaction() as session:
        assert give_up(session, assignment, "lost", None, 3)
    app.coordinator.tasks = {3: LiveTask(5, 2.5), 4: LiveTask(1, None)}
    at = partial(value, scraped(app))
    assert [at("evaluations", state=state) for state in ("succeeded", "failed", "running")] == [1, 1, 1]
    assert (at("shards", state="queued"), at("shards", state="running")) == (2, 0)
    assert at("attempts_total", kind="loss", stage="plan", outcome="lost") == 1
    assert at("units_per_second", kind="loss") == 2.5
    build = {"code": code_digest(), "commit": find_commit(), "python": platform.python_version()}
    assert at("build_info", version=__version__, **build) == 1
    assert at("attempts_total", kind="loss", stage="run", outcome="succeeded") == 3
    assert at("attempts_total", kind="loss", stage="plan", outcome="failed") == 1
    assert at("failures_total", code="invalid_data") == 1
    assert at("units_total", kind="loss") == 30
    assert at("attempt_seconds_bucket", stage="run", le="+Inf") == at("attempt_seconds_count", stage="run") == 3
    assert (at("workers"), at("coordinator_up"), at("database_up"), at("event_streams")) == (1, 1, 1, 0)


def test_the_oldest_that_waits(app: App) -> None:
    assert value(app, "queue_oldest_seconds") == 0
    enter(app.store, submission(25), suite())
    enter(app.store, submission(50), suite())
    with app.store.transaction() as session:
        session.execute(sa.text("UPDATE evaluations SET created_at = '2020-01-01 00:00:00' WHERE id = 1"))
    assert (value(app, "queue_oldest_seconds") or 0) > 5 * 365 * 86400
    app.http.post("/v1/evaluations/1/cancel")
    assert 0 < (value(app, "queue_oldest_seconds") or 0) < 600, "the older one is over"


def test_counts_outlast_the_service_and_what_is_deleted(tmp_path: Path) -> None:
    """A counter that shrinks is read as one that began anew, and a rate over it has a peak that never was."""
    with app_in_process(tmp_path / "data") as app:
        enter(app.store, submission(), suite())
        evaluate_whole(app.store, metric(1.5), shards=3)
        url = app.store.url
        before = value(app, "attempts_total", kind="loss", stage="run", outcome="succeeded")
    store = Store(url)
    with store.transaction() as session:
        for table in ("attempts", "shards"):
            session.execute(sa.text(f"DELETE FROM {table}"))
        totals = {(row.stage, row.outcome): row.attempts for row in read_totals(session)}
    assert totals["run", "succeeded"] == before == 3
    store.close()


def test_every_duration_has_its_bucket(app: App) -> None:
    """The end of a bucket is in it; a clock that was set back takes nothing away."""
    durations = [-5.0, 0.1, 0.11, 10_000.0, 20_000.0]
    with app.store.transaction() as session:
        for seconds in durations:
            count_attempt(session, kind="loss", stage="run", outcome="succeeded", code="", seconds=seconds, units=1)
    with app.store.reading() as session:
        counts = {row.bucket: row.attempts for row in session.scalars(sa.select(AttemptTotal))}
    assert counts == {0: 2, 1: 1, len(SECONDS) - 1: 1, len(SECONDS): 1}
    assert value(app, "attempt_seconds_bucket", stage="run", le="0.1") == 2
    assert value(app, "attempt_seconds_bucket", stage="run", le="10000.0") == 4
    assert value(app, "attempt_seconds_count", stage="run") == 5
    assert value(app, "attempt_seconds_sum", stage="run") == pytest.approx(30_000.21)


def test_requests_by_their_routes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by their paths: each run that somebody asks for would be a series, for ever."""
    for run in "abc":
        app.http.get(f"/v1/runs/{run}")
    app.http.get("/v1/runs")
    app.http.get("/nothing/here")
    app.http.request("BREW", "/v1/runs")
    enter(app.store, submission(), suite())
    evaluate_whole(app.store, metric(1.5))
    assert app.http.get("/v1/evaluations/1/events").status_code == 200
    monkeypatch.setattr(runs, "runs_view", lambda *_: 1 / 0)
    app.http.get("/v1/runs?limit=7")
    stream = "/v1/evaluations/{evaluation_id}/events"
    found = scraped(app)
    requests = {labels: number for (name, labels), number in found.items() if name == "evalsvc_requests_total"}
    assert {(dict(labels)["route"], dict(labels)["status"], number) for labels, number in requests.items()} == {
        ("/v1/runs/{run}", "404", 3),
        ("/v1/runs", "200", 1),
        ("none", "404", 1),
        ("/v1/runs", "405", 1),
        ("/v1/runs", "500", 1),
        (stream, "200", 1),
    }
    assert ("evalsvc_request_seconds_count", (("method", "GET"), ("route", stream))) not in found
    seconds = ("evalsvc_request_seconds_count", (("method", "GET"), ("route", "/v1/runs/{run}")))
    assert found[seconds] == 3
    assert not any(dict(labels).get("method") == "BREW" for _, labels in found)


def test_a_database_that_is_away_is_told(app: App) -> None:
    """Whoever looks for what is wrong must not get an error in the place of what is right."""
    with app.store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE evaluations RENAME TO gone")
    found = scraped(app)
    assert found["evalsvc_database_up", ()] == 0
    assert found["evalsvc_workers", ()] == 1
    assert not any(name == "evalsvc_evaluations" for name, _ in found)


def test_every_metric_is_in_the_table_with_its_labels(app: App) -> None:
    enter(app.store, submission(), suite())
    evaluate_whole(app.store, metric(1.5))
    enter(app.store, submission(50), suite())
    fail(app.store, "invalid_data")
    app.coordinator.tasks = {1: LiveTask(5, 2.5)}
    app.http.get("/v1/runs")
    families = {family.name: family for family in text_string_to_metric_families(app.http.get("/metrics").text)}
    assert {name: (family.type, family.documentation) for name, family in families.items()} == {
        name: (family.kind, family.help) for name, family in FAMILIES.items()
    }
    for name, family in families.items():
        labels: set[str] = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        assert labels == set(FAMILIES[name].labels), name


def test_memory_and_files_of_the_process(app: App) -> None:
    found, process = scraped(app), psutil.Process()
    assert found["process_start_time_seconds", ()] == pytest.approx(process.create_time(), abs=2)
    assert found["process_resident_memory_bytes", ()] == pytest.approx(process.memory_info().rss, rel=0.5)
    assert 0 < found["process_open_fds", ()] < found["process_max_fds", ()]


def test_the_disks_of_the_service(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool may be a link to another disk, and is not there before the first checkpoint is spooled."""
    other = tmp_path / "other"
    other.mkdir()
    sizes = {app.settings.data_path: {"total": 1000, "free": 400}, other: {"total": 9000, "free": 1}}
    usages = {folder.resolve(): usage for folder, usage in sizes.items()}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(**usages[path.resolve()]))
    names = [(f"disk_{size}_bytes", folder) for folder in ("data", "spool") for size in ("free", "total")]

    def disks() -> list[float | None]:
        return [value(app, name, folder=folder) for name, folder in names]

    assert disks() == [400, 1000, 400, 1000]
    (app.settings.data_path / "spool").symlink_to(other)
    assert disks() == [400, 1000, 1, 9000]

    def away(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", away)
    assert disks() == [None] * 4
    assert value(app, "database_up") == 1, "a disk that is away hides nothing else"


def test_a_service_that_only_reads_has_no_workers_to_miss(start_app: Callable[..., App]) -> None:
    """It showed no coordinator and no workers, which an alert takes for an outage."""
    names = ("coordinator_up", "workers", "database_up")
    assert [value(start_app(read_only=1), name) for name in names] == [None, None, 1]
