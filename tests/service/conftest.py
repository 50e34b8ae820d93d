import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from migrated import migrated_store
from service_process import Serve, ServiceProcess

from evalsvc.store.session import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = migrated_store(tmp_path / "evalsvc.db")
    yield store
    store.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts services with one worker unless told otherwise; the test's end stops them."""
    started: list[ServiceProcess] = []

    def start(*options: str, name: str = "service", devices: str = "cpu") -> ServiceProcess:
        service = ServiceProcess(tmp_path / name, "--devices", devices, *options)
        started.append(service)
        return service.start()

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def refusal(child_process: None) -> Callable[..., str]:
    """Starts services that do not start; the line that they say."""

    def start(folder: Path, *options: str) -> str:
        command = [sys.executable, "-m", "evalsvc.cli", "serve", "--port", "0", "--data-dir", str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        return done.stderr

    return start
