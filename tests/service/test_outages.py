"""The database goes away in the middle of an evaluation, and processes of backups and uploads are killed.

What users see meanwhile, and that nothing is lost over it. TESTS_LONG=1 lets outages last as long as in earnest.
"""

import hashlib
import os
import random
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
from filled_store import files_of
from machines import free_port, wait_for
from postgresql_server import PostgresqlServer
from programs import lacking, output_of
from service_process import CHECKPOINT, Serve, ServiceProcess, steps_begun

from evalsvc.client.uploads import PART_BYTES
from evalsvc.config import Settings
from evalsvc.errors import BackupUnusable
from evalsvc.store.backup import restore_backup

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("child_process")]

SmallDisk = Callable[[Path, str], Path]

LONG = bool(os.environ.get("TESTS_LONG"))

OUTAGE = 30.0 if LONG else 6.0
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
            lacking("tmpfs", f"needs to mount a tmpfs: {done.stderr.strip()}")
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


def test_a_full_disk_at_the_first_start(
    small_disk: SmallDisk, serve: Serve, refusal: Callable[..., str], tmp_path: Path
) -> None:
    """With no room for a file, for the tables, and for some of them."""
    folder = small_disk(tmp_path / "data", "16m")
    filler = fill(folder)
    size = filler.stat().st_size
    for room in (0, 16_384, 131_072):
        with filler.open("r+b") as stream:
            stream.truncate(size - room)
        assert re.search(r"(cannot be written|cannot be used|is full).*\[data", refusal(folder))
    filler.unlink()
    service = serve("--data-dir", str(folder))
    assert service.request("GET", "/v1/runs")["runs"] == []


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


# Backups and uploads that are killed


def test_backups_that_are_killed(serve: Serve, tmp_path: Path) -> None:
    """kill -9, ten times, of a backup of a service at work: no file is left that a restore takes for a backup.

    What was unfinished in a whole one is finished where it is restored, its outputs included.
    """
    service = serve()
    large = service.data_dir / "shared" / "statistics" / "large.npz"
    large.parent.mkdir(exist_ok=True)
    large.write_bytes(random.Random(1).randbytes(50_000_000))
    task = {"kind": "steps", "log": str(tmp_path / "steps.log"), "shards": 2, "steps": 2}
    service.put_suite("steps", task)
    service.put_suite("slow", task | {"shards": 4, "seconds": 0.5, "size": 100_000, "leaves": True})
    backups, dice = tmp_path / "backups", random.Random(2)
    backups.mkdir()
    command = [sys.executable, "-m", "evalsvc.cli", "backup", str(backups / "b.tar")]
    steps = killed = 0
    while killed < 10:
        steps += 1
        service.post("run", steps, CHECKPOINT, ["steps"], spool="copy")
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen([*command, "--data-dir", str(service.data_dir)], env=environment)
        wait_for(lambda: any(backups.iterdir()), "a backup that has begun")
        time.sleep(dice.random() * 0.1)
        process.kill()
        process.wait(timeout=10)
        [left] = backups.iterdir()
        target = tmp_path / f"target-{steps}"
        try:
            restore_backup(Settings(data_dir=str(target)), left)
        except BackupUnusable:
            killed += 1
            assert left.suffix == ".partial"
            assert not target.exists()
        else:  # the last byte was written before the process was killed
            assert files_of(target).keys() >= {"shared/statistics/large.npz"}
        left.unlink()

    outputs = service.data_dir / "shared" / "outputs"
    service.post("run", steps + 1, CHECKPOINT, ["slow"], spool="copy")
    wait_for(lambda: any(outputs.glob("*/*")), "an output that waits for its merge")
    output_of(*command, "--data-dir", service.data_dir)
    service.stop()
    output_of(*command[:3], "restore", backups / "b.tar", "--data-dir", tmp_path / "restored")
    restored = serve(name="restored")
    for evaluation in range(1, steps + 2):
        assert restored.wait(evaluation)["state"] == "succeeded"
    totals = {("steps/total", step): 4 for step in range(1, steps + 1)}
    assert restored.history("run") == totals | {("steps/total", steps + 1): 8}


def test_a_restored_database_needs_its_data_folder(
    serve: Serve, refusal: Callable[..., str], tmp_path: Path, empty_postgresql: str
) -> None:
    """Neither an empty folder nor another one is taken, until somebody says that its own is lost."""
    service = serve("--database-url", empty_postgresql)
    service.wait(service.begin_steps(tmp_path / "steps.log", shards=1, steps=1))
    service.stop()
    said = refusal(tmp_path / "empty", "--database-url", empty_postgresql)
    assert f"the folder {tmp_path / 'empty'} is not its data folder" in said
    assert said.strip().endswith("[data_directory_unusable]")
    begun = serve("--database-url", empty_postgresql, "--new-data-folder", name="empty")
    assert begun.history("run") == {("steps/total", 1): 1}


SIZE = 2_000_000_000 if LONG else 120_000_000
KILLS = 10 if LONG else 2
"""Of the client and of the service each."""

SUBMIT = """
import sys
from evalsvc.client import Client
with Client(sys.argv[1]) as client:
    client.submit("sent", 1, sys.argv[2], suites=[], model="open_lm_160m", upload=True)
"""


@pytest.mark.timeout(1800 if LONG else 180)
def test_an_upload_that_is_killed_on_both_sides_arrives_whole(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_UPLOAD_BYTES", "5000000000")
    monkeypatch.setenv("EVALSVC_RATE_LIMIT", "0")
    service, file = serve("--port", str(free_port())), tmp_path / "epoch_1.pt"
    uploads = service.data_dir / "spool" / "uploads"
    with file.open("wb") as stream:
        for _ in range(SIZE // 1_000_000):
            stream.write(os.urandom(1_000_000))

    def start_trainer() -> subprocess.Popen[bytes]:
        """A process that submits the file, and knows nothing of the process before it."""
        return subprocess.Popen([sys.executable, "-c", SUBMIT, service.url, str(file)])

    def arrived() -> int:
        return max((path.stat().st_size for path in uploads.glob("*")), default=0)

    def most_memory() -> int:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    chance, killed, idle = random.Random(7), [], most_memory()
    trainer = start_trainer()
    try:
        for kill in range(KILLS):
            due = SIZE * (kill + 1) // (KILLS + 2)
            wait_for(lambda due=due: arrived() >= due, f"{due:,} bytes are there", 300)
            time.sleep(chance.random() * 0.05)
            killed.append(arrived())
            for process in (service, trainer) if kill % 2 else (trainer, service):
                process.kill()
            trainer.wait(timeout=10)
            # A part counts as a whole: a service that outlives the trainer removes the part that broke off.
            assert arrived() >= killed[-1] - PART_BYTES, "what counted stays"
            service.start()
            trainer = start_trainer()
        assert trainer.wait(timeout=600) == 0
    finally:
        trainer.kill()
    assert most_memory() - idle < SIZE // 2, "it is not read whole"
    assert all(0 < offset < SIZE for offset in killed), "each kill came while bytes arrived"
    [spooled] = (service.data_dir / "spool").glob("*/upload:*")
    assert spooled.stat().st_size == SIZE
    with spooled.open("rb") as there, file.open("rb") as here:
        digests = [hashlib.file_digest(stream, "sha256").hexdigest() for stream in (there, here)]
    assert digests[0] == digests[1] == spooled.name.removeprefix("upload:")
    assert list(uploads.iterdir()) == []
