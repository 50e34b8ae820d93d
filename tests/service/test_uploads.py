"""An upload whose client and service are killed again and again arrives whole, and disturbs nobody meanwhile."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest
from machines import wait_for
from ports import free_port
from service_process import CHECKPOINT, ServiceProcess

LONG = bool(os.environ.get("TESTS_LONG"))

SIZE = 2_000_000_000 if LONG else 120_000_000
KILLS = 10 if LONG else 2
"""Of the client and of the service each."""

POST_MS = 300.0 if LONG else 5_000.0
"""In which a post must be answered while a file is sent; the second tier shares its cores with other tests."""

MEMORY = 50_000_000
"""Bytes that the service may take more than when nothing is sent."""

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


class Witness:
    """Posts checkpoints all the while, and watches the memory of the service."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._ended = threading.Event()
        self.milliseconds: list[float] = []
        self.memory: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as http:
            process, idle, step = None, 0, 0
            while not self._ended.wait(0.03):
                running = self._service.process
                if running is None:
                    continue
                step += 1
                body = {"run": "beside", "step": step, "uri": str(CHECKPOINT), "suites": []}
                begun = time.perf_counter()
                try:
                    answered = http.post(f"{self._service.url}/v1/checkpoints", json=body).status_code
                    milliseconds = 1000 * (time.perf_counter() - begun)
                    memory = psutil.Process(running.pid).memory_info().rss
                except (httpx.TransportError, psutil.NoSuchProcess):
                    continue  # it was killed
                assert answered == 201
                if process is not running:
                    # The first answers of a process are those that load what it needs.
                    process, idle, first = running, memory, step
                if step - first < 5:
                    idle = max(idle, memory)
                    continue
                self.milliseconds.append(milliseconds)
                self.memory.append(memory - idle)


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


@pytest.mark.timeout(1800 if LONG else 180)
def test_an_upload_that_is_killed_on_both_sides_arrives_whole(service: ServiceProcess, file: Path) -> None:
    chance = random.Random(7)
    killed = []
    with Witness(service) as witness:
        wait_for(lambda: len(witness.milliseconds) >= 30, "posts while nothing is sent")
        alone = list(witness.milliseconds)
        trainer = Trainer(service.url, file)
        try:
            for kill in range(KILLS):
                due = SIZE * (kill + 1) // (KILLS + 2)
                wait_for(lambda due=due: offset_of(service) >= due, f"{due:,} bytes are there", 300)
                time.sleep(chance.random() * 0.05)
                killed.append(offset_of(service))
                first, second = (service, trainer) if kill % 2 else (trainer, service)
                first.kill()
                second.kill()
                assert offset_of(service) >= killed[-1], "what counted stays"
                service.start()
                trainer.start()
            assert trainer.process.wait(timeout=600) == 0
        finally:
            trainer.kill()
    [spooled] = (service.data_dir / "spool").glob("*/upload:*")
    assert spooled.stat().st_size == SIZE
    with spooled.open("rb") as there, file.open("rb") as here:
        digests = [hashlib.file_digest(stream, "sha256").hexdigest() for stream in (there, here)]
    assert digests[0] == digests[1] == spooled.name.removeprefix("upload:")
    assert list((service.data_dir / "uploads").iterdir()) == []
    posts = sorted(witness.milliseconds[len(alone) :])
    slowest, most = posts[-1], max(witness.memory)
    print(f"{SIZE:,} bytes arrived, service and client killed at {killed}")
    print(
        f"{most / 1e6:.1f} MB over idle; {len(alone)} posts before in {median(alone):.0f} ms, at most {max(alone):.0f}"
    )
    print(f"{len(posts)} posts beside in {median(posts):.0f} ms, 99 % in {posts[len(posts) * 99 // 100]:.0f}, at most")
    print(f"{slowest:.0f}, of which {sum(taken > 300 for taken in posts)} took more than 300")
    assert len(killed) == KILLS
    assert all(0 < offset < SIZE for offset in killed), "each kill came while bytes arrived"
    assert len(posts) > 20
    assert slowest < POST_MS
    assert most < MEMORY
