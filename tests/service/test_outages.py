"""The database goes away in the middle of an evaluation: what users see meanwhile, and that nothing is lost over it.

TESTS_LONG=1 lets outages last as long as in earnest.
"""

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from machines import wait_for
from postgresql_server import PostgresqlServer
from service_process import CHECKPOINT, Serve, ServiceProcess, steps_begun

pytestmark = pytest.mark.usefixtures("child_process")

SmallDisk = Callable[[Path, str], Path]

OUTAGE = 30.0 if os.environ.get("TESTS_LONG") else 6.0
"""Seconds that PostgreSQL is away."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server


def is_ready(service: ServiceProcess) -> bool:
    return service.ask("GET", "/readyz").status_code == 200


def is_unusable(response: httpx2.Response, *words: str) -> None:
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert (response.status_code, document["code"]) == (503, "database_unusable"), document
    assert response.headers["retry-after"] == "5"
    for word in ("the database ", "cannot be used: ", "try again, nothing that was stored is lost", *words):
        assert word in document["detail"], document["detail"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", [pytest.param("stop", marks=pytest.mark.long), "kill"])
def test_postgresql_goes_away_and_comes_back(serve: Serve, server: PostgresqlServer, tmp_path: Path, end: str) -> None:
    """The results of the workers wait for it, and none of them works for nothing."""
    engine = sa.create_engine(server.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    service, log = serve("--database-url", server.url), tmp_path / "steps.log"
    evaluation = service.begin_steps(log, shards=4, steps=10, size=100_000)
    getattr(server, end)()
    try:
        away_until = time.monotonic() + OUTAGE
        body = {"run": "run", "step": 2, "uri": str(CHECKPOINT), "suites": ["steps"]}
        while time.monotonic() < away_until:
            is_unusable(service.ask("GET", f"/v1/evaluations/{evaluation}"))
            is_unusable(service.ask("POST", "/v1/checkpoints", json=body))
            ready = service.ask("GET", "/readyz")
            assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
            assert service.ask("GET", "/healthz").status_code == 200
            time.sleep(0.5)
    finally:
        server.start()
    wait_for(lambda: is_ready(service), "the service is ready")
    [posted] = service.post("run", 2, CHECKPOINT, ["steps"])
    for number in (evaluation, posted):
        done = service.wait(number)
        assert done["state"] == "succeeded", done
        assert done["tasks"][0]["shards"]["attempts"] == done["tasks"][0]["shards"]["total"] == 4
    assert set(steps_begun(log).values()) == {2}, "each step once by each evaluation"
    assert service.history("run") == {("steps/total", 1): 40, ("steps/total", 2): 40}
    assert "Traceback" not in service.log.read_text()
    service.stop()


@pytest.mark.timeout(400)
def test_another_writer_holds_sqlite_for_long(serve: Serve, tmp_path: Path) -> None:
    """Requests that write wait, and say so in the end; those that read go on, and so does the coordinator."""
    service, log = serve(), tmp_path / "steps.log"
    evaluation = service.begin_steps(log, shards=3, steps=4, seconds=0.5)
    other = sqlite3.connect(service.data_dir / "evalsvc.db", isolation_level=None, timeout=60)
    other.execute("BEGIN IMMEDIATE")
    url, body = f"{service.url}/v1/checkpoints", {"run": "run", "step": 2, "uri": str(CHECKPOINT), "suites": ["steps"]}
    with ThreadPoolExecutor(50) as pool:
        posts = [pool.submit(httpx2.post, url, json=body, timeout=90) for _ in range(50)]
        begun = time.monotonic()
        while time.monotonic() < begun + 13:
            assert service.evaluation(evaluation)["state"] == "running"
            time.sleep(0.5)
        other.execute("ROLLBACK")
        other.close()
        answers = [post.result() for post in posts]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert {answer.json()["code"] for answer in refused} == {"database_unusable"}
    details = " ".join(answer.json()["detail"] for answer in refused)
    assert "cannot be used: database is locked" in details or "is busy with other writes" in details
    assert {answer.status_code for answer in answers} <= {200, 201, 503}
    [posted] = service.post("run", 2, CHECKPOINT, ["steps"])
    for number in (evaluation, posted):
        assert service.wait(number)["state"] == "succeeded"
    assert set(steps_begun(log).values()) == {2}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], Path]]:
    """Mounts file systems of a given size, which only root can.

    Where TESTS_REQUIRE names `tmpfs`, a test that needs it fails without it.
    """
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = f"needs to mount a tmpfs: {done.stderr.strip()}"
            if "tmpfs" in os.environ.get("TESTS_REQUIRE", "").split(","):
                pytest.fail(reason)
            pytest.skip(reason)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that there is; the file that has it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (65_536, 4_096):
            try:
                while stream.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return filler


def start_once(folder: Path, *options: str) -> str:
    """What `evalsvc serve` says that does not start."""
    command = [sys.executable, "-m", "evalsvc.cli", "serve", "--port", "0", "--data-dir", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_full_disk_at_the_first_start(small_disk: SmallDisk, serve: Serve, tmp_path: Path) -> None:
    """With no room for a file, for the tables, and for some of them."""
    folder = small_disk(tmp_path / "data", "16m")
    filler = fill(folder)
    size = filler.stat().st_size
    for room in (0, 16_384, 131_072):
        with filler.open("r+b") as stream:
            stream.truncate(size - room)
        assert re.search(r"(cannot be written|cannot be used|is full).*\[data", start_once(folder))
    filler.unlink()
    service = serve("--data-dir", str(folder))
    assert service.request("GET", "/v1/runs")["runs"] == []


@pytest.mark.timeout(400)
def test_sqlite_on_a_full_disk_stays_sound(small_disk: SmallDisk, serve: Serve, tmp_path: Path) -> None:
    folder, log = small_disk(tmp_path / "data", "16m"), tmp_path / "steps.log"
    service = serve("--data-dir", str(folder))
    evaluation = service.begin_steps(log, shards=3, steps=8, size=60_000)
    filler = fill(folder)
    large = {f"x{number}": "y" * 500 for number in range(100)}
    bodies = [
        {"run": f"run-{index}", "step": 2, "uri": str(CHECKPOINT), "suites": ["steps"], "tags": large}
        for index in range(10)
    ]
    answers = [service.ask("POST", "/v1/checkpoints", json=body) for body in bodies]
    is_unusable(answers[-1], "database or disk is full")
    ready = service.ask("GET", "/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready"), "no write would be taken"
    kept = [body["run"] for body, answer in zip(bodies, answers, strict=True) if answer.is_success]
    assert service.evaluation(evaluation)["state"] == "running"
    time.sleep(2)
    filler.unlink()
    wait_for(lambda: is_ready(service), "the service is ready")
    assert service.wait(evaluation)["state"] == "succeeded"
    assert set(steps_begun(log)) == {f"{shard} {step}" for shard in range(3) for step in range(8)}
    runs = [run["name"] for run in service.request("GET", "/v1/runs")["runs"]]
    assert sorted(runs) == sorted(["run", *kept]), "what was answered is there, and what was refused is not"
    service.kill()
    with sqlite3.connect(folder / "evalsvc.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
