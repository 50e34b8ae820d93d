"""When what has ended is started again, and the end of what is being started."""

import multiprocessing
from pathlib import Path

import psutil
import pytest
from machines import Machines, wait_for
from slow_nanny import serve_slowly

from evalsvc.cluster.supervisor import LONGEST_WAIT, STEADY, Backoff
from evalsvc.config import Settings


def test_what_keeps_ending_is_started_less_often_and_what_was_steady_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("evalsvc.cluster.supervisor.time.monotonic", lambda: now)
    backoff = Backoff()
    waits = []
    for _ in range(7):
        backoff.started()
        now += 1
        waits.append(backoff.wait())
    assert waits == [0.5, 1, 2, 4, 8, LONGEST_WAIT, LONGEST_WAIT]
    backoff.started()
    now += STEADY + 1
    assert backoff.wait() == 0.5


def test_a_worker_that_is_just_being_started_is_ended(tmp_path: Path, machines: Machines) -> None:
    """It ignores SIGTERM until it has started: the command waited for it for ever."""
    context = multiprocessing.get_context("spawn")
    settings = Settings(devices="cpu", threads=1, **machines.settings())
    command = context.Process(target=serve_slowly, args=(settings, machines.address, tmp_path / "started"))
    command.start()
    try:
        wait_for((tmp_path / "started").exists, "a worker process")
        below = psutil.Process(command.pid).children(recursive=True)
        command.terminate()
        command.join(30)
        assert command.exitcode == 0
        assert psutil.wait_procs(below, timeout=20)[1] == []
    finally:
        command.kill()
        command.join()
