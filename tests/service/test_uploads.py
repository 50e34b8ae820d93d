"""An upload whose client and service are killed again and again arrives whole, and disturbs nobody meanwhile."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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

POST_MS = 300.0
"""In which a post must be answered while a file is sent."""

MEMORY = 50_000_000
"""Bytes that the service may take more than when nothing is sent."""

SUBMIT = """
import sys
from evalsvc.client import Client
with Client(sys.argv[1]) as client:
    client.submit("sent", 1, sys.argv[2], suites=[], model="open_lm_160m", upload=True)
"""


class Trainer:
    """A process that submits a file, from the beginning after each `kill`."""

    def __init__(self, url: str, file: Path) -> None:
        self._arguments = [sys.executable, "-c", SUBMIT, url, str(file)]
        self.process = self._start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self.process = self._start()

    def wait_for_the_end(self) -> None:
        """Wait until the file is posted; a client that began while the service was away begins anew."""
        while self.process.wait(timeout=170 if not LONG else 900) != 0:
            self.process = self._start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._arguments, stderr=subprocess.DEVNULL)


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
    """Bytes that the service has on its disk, as its files say."""
    offsets = [int(path.read_bytes()) for path in (service.data_dir / "uploads").glob("*/offset")]
    return max(offsets, default=0)


def wait_for_bytes(service: ServiceProcess, bytes_there: Callable[[], int]) -> None:
    wait_for(lambda: offset_of(service) >= bytes_there() or is_posted(service), "the upload grows", 300)


def is_posted(service: ServiceProcess) -> bool:
    return bool(list((service.data_dir / "spool").glob("*/upload:*")))


@pytest.mark.timeout(1800 if LONG else 180)
def test_an_upload_that_is_killed_on_both_sides_arrives_whole(service: ServiceProcess, file: Path) -> None:
    chance = random.Random(7)
    trainer = Trainer(service.url, file)
    killed = []
    with Witness(service) as witness:
        try:
            for kill in range(KILLS):
                due = SIZE * (kill + 1) // (KILLS + 2)
                wait_for_bytes(service, lambda due=due: due)  # type: ignore[misc]
                time.sleep(chance.random() * 0.05)
                killed.append(offset_of(service))
                service.kill()
                trainer.kill()
                assert offset_of(service) >= killed[-1], "what counted stays"
                service.start()
            trainer.wait_for_the_end()
        finally:
            trainer.close()
    [spooled] = (service.data_dir / "spool").glob("*/upload:*")
    assert spooled.stat().st_size == SIZE
    with spooled.open("rb") as there, file.open("rb") as here:
        digests = [hashlib.file_digest(stream, "sha256").hexdigest() for stream in (there, here)]
    assert digests[0] == digests[1] == spooled.name.removeprefix("upload:")
    assert list((service.data_dir / "uploads").iterdir()) == []
    slowest, most = max(witness.milliseconds), max(witness.memory)
    print(
        f"{SIZE:,} bytes, killed at {killed}; {len(witness.milliseconds)} posts, the slowest {slowest:.0f} ms; "
        f"{most / 1e6:.1f} MB over idle"
    )
    assert len(killed) == KILLS
    assert all(0 < offset < SIZE for offset in killed), "each kill came while bytes arrived"
    assert len(witness.milliseconds) > 20
    assert slowest < POST_MS
    assert most < MEMORY
