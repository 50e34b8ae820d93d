"""An upload whose client and service are killed again and again arrives whole."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import wait_for
from ports import free_port
from service_process import ServiceProcess

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
            assert offset_of(service) >= killed[-1], "what counted stays"
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
