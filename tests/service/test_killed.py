"""Backups and uploads of a service that evaluates, also where a process is killed in their midst."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filled_store import files_of, rows_of
from machines import free_port, wait_for
from service_process import CHECKPOINT, Serve, ServiceProcess

from evalsvc.client.uploads import PART_BYTES
from evalsvc.config import Settings
from evalsvc.errors import BackupUnusable
from evalsvc.store.backup import restore_backup
from evalsvc.store.session import Store

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("child_process")]

STEPS = (1, 2, 3)


def run_cli(*arguments: str) -> str:
    """Run `evalsvc` to its end. Returns what it printed."""
    command = [sys.executable, "-m", "evalsvc.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(service: ServiceProcess) -> dict[str, Any]:
    """What the service answers of its runs, with the content of every artifact."""
    answers = {
        path: service.request("GET", path)
        for path in ("/v1/runs", "/v1/runs/run/metrics", "/v1/runs/run/artifacts", "/v1/suites/steps")
    }
    answers |= {f"evaluation {step}": service.evaluation(step) for step in STEPS}
    artifacts = answers["/v1/runs/run/artifacts"]["artifacts"]
    answers |= {str(item["id"]): service.ask("GET", f"/v1/artifacts/{item['id']}").content for item in artifacts}
    assert len(artifacts) == len(STEPS)
    return answers


@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
def test_a_backup_of_a_busy_service(source: str, serve: Serve, empty_postgresql: str, tmp_path: Path) -> None:
    """Of the moment: what was unfinished is finished where it is restored. Of the end: every answer is the same."""
    lite = f"sqlite:///{tmp_path / 'lite' / 'evalsvc.db'}"
    urls = [lite, empty_postgresql] if source == "sqlite" else [empty_postgresql, lite]
    service = serve("--database-url", urls[0])
    parameters = {"shards": 4, "steps": 2, "seconds": 0.1, "size": 100_000, "leaves": True}
    service.put_suite("steps", {"kind": "steps", "log": str(tmp_path / "steps.log"), **parameters})
    for step in STEPS:
        service.post("run", step, CHECKPOINT, ["steps"], spool="copy")
    place = ("--data-dir", str(service.data_dir), "--database-url", urls[0])
    wait_for(lambda: any((service.data_dir / "shared" / "outputs").glob("*/*")), "an output that waits for its merge")
    run_cli("backup", str(tmp_path / "early.tar"), *place)
    for step in STEPS:
        assert service.wait(step)["state"] == "succeeded"
    before = documents(service)
    run_cli("backup", str(tmp_path / "late.tar"), *place)
    service.stop()

    stores = [Store(url) for url in urls]
    restored = tmp_path / "restored"
    run_cli("restore", str(tmp_path / "late.tar"), "--data-dir", str(restored), "--database-url", urls[1])
    rows = [{name: found for name, found in rows_of(store).items() if name != "terms"} for store in stores]
    assert rows[0] == rows[1]
    assert files_of(restored) == files_of(service.data_dir)
    elsewhere = serve("--database-url", urls[1], name="restored")
    assert documents(elsewhere) == before
    elsewhere.stop()
    for store in stores:
        store.close()

    finished = tmp_path / "early"
    run_cli("restore", str(tmp_path / "early.tar"), "--data-dir", str(finished))
    early = serve(name="early")
    assert [early.wait(step)["state"] for step in STEPS] == ["succeeded"] * len(STEPS)
    assert early.history("run") == {("steps/total", step): 8 for step in STEPS}


def test_backups_that_are_killed(serve: Serve, tmp_path: Path) -> None:
    """kill -9, ten times, of a backup of a service at work: no file is left that a restore takes for a backup."""
    service = serve()
    large = service.data_dir / "shared" / "statistics" / "large.npz"
    large.parent.mkdir(exist_ok=True)
    large.write_bytes(random.Random(1).randbytes(50_000_000))
    service.put_suite("steps", {"kind": "steps", "log": str(tmp_path / "steps.log"), "shards": 2, "steps": 2})
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

    run_cli("backup", str(backups / "b.tar"), "--data-dir", str(service.data_dir))
    service.stop()
    run_cli("restore", str(backups / "b.tar"), "--data-dir", str(tmp_path / "restored"))
    restored = serve(name="restored")
    for evaluation in range(1, steps + 1):
        assert restored.wait(evaluation)["state"] == "succeeded"
    assert restored.history("run") == {("steps/total", step): 4 for step in range(1, steps + 1)}


def test_a_restored_database_needs_its_data_folder(serve: Serve, tmp_path: Path, empty_postgresql: str) -> None:
    """Neither an empty folder nor another one is taken, until somebody says that its own is lost."""
    service = serve("--database-url", empty_postgresql)
    service.wait(service.begin_steps(tmp_path / "steps.log", shards=1, steps=1))
    service.stop()
    store = Store(empty_postgresql)
    with store.transaction() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM runs")) == 1
    store.close()
    command = [sys.executable, "-m", "evalsvc.cli", "serve", "--port", "0", "--database-url", empty_postgresql]
    refused = subprocess.run(
        [*command, "--data-dir", str(tmp_path / "empty")], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert f"the folder {tmp_path / 'empty'} is not its data folder" in refused.stderr
    assert refused.stderr.strip().endswith("[data_directory_unusable]")
    begun = serve("--database-url", empty_postgresql, "--new-data-folder", name="empty")
    assert begun.history("run") == {("steps/total", 1): 1}


LONG = bool(os.environ.get("TESTS_LONG"))

SIZE = 2_000_000_000 if LONG else 120_000_000
KILLS = 10 if LONG else 2
"""Of the client and of the service each."""

SUBMIT = """
import sys
from evalsvc.client import Client
with Client(sys.argv[1]) as client:
    client.submit("sent", 1, sys.argv[2], suites=[], model="open_lm_160m", upload=True)
"""


class Trainer:
    """A process that submits a file, and knows nothing of the process before it."""

    def __init__(self, url: str, file: Path) -> None:
        self._arguments = [sys.executable, "-c", SUBMIT, url, str(file)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._arguments)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_process: None) -> Iterator[ServiceProcess]:
    monkeypatch.setenv("EVALSVC_UPLOAD_BYTES", "5000000000")
    monkeypatch.setenv("EVALSVC_RATE_LIMIT", "0")
    running = ServiceProcess(tmp_path / "service", "--devices", "cpu", "--port", str(free_port())).start()
    yield running
    running.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_1.pt"
    with path.open("wb") as stream:
        for _ in range(SIZE // 1_000_000):
            stream.write(os.urandom(1_000_000))
    return path


def offset_of(service: ServiceProcess) -> int:
    """Bytes that the service has on its disk."""
    return max((path.stat().st_size for path in (service.data_dir / "uploads").glob("*")), default=0)


def most_memory(service: ServiceProcess) -> int:
    """The most bytes that the process of the service has had in memory."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.timeout(1800 if LONG else 180)
def test_an_upload_that_is_killed_on_both_sides_arrives_whole(service: ServiceProcess, file: Path) -> None:
    chance, killed, idle = random.Random(7), [], most_memory(service)
    trainer = Trainer(service.url, file)
    try:
        for kill in range(KILLS):
            due = SIZE * (kill + 1) // (KILLS + 2)
            wait_for(lambda due=due: offset_of(service) >= due, f"{due:,} bytes are there", 300)
            time.sleep(chance.random() * 0.05)
            killed.append(offset_of(service))
            for process in (service, trainer) if kill % 2 else (trainer, service):
                process.kill()
            # A part counts as a whole: a service that outlives the trainer removes the part that broke off.
            assert offset_of(service) >= killed[-1] - PART_BYTES, "what counted stays"
            service.start()
            trainer.start()
        assert trainer.process.wait(timeout=600) == 0
    finally:
        trainer.kill()
    assert most_memory(service) - idle < SIZE // 2, "it is not read whole"
    assert all(0 < offset < SIZE for offset in killed), "each kill came while bytes arrived"
    [spooled] = (service.data_dir / "spool").glob("*/upload:*")
    assert spooled.stat().st_size == SIZE
    with spooled.open("rb") as there, file.open("rb") as here:
        digests = [hashlib.file_digest(stream, "sha256").hexdigest() for stream in (there, here)]
    assert digests[0] == digests[1] == spooled.name.removeprefix("upload:")
    assert list((service.data_dir / "uploads").iterdir()) == []
