"""A service as a process: it begins where no other is, and ends without losing what its workers do."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from service_process import ServiceProcess

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("child_process")]

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
CHECKPOINT = GOLDEN / "01_rotary_default_ln_swiglu" / "checkpoints" / "epoch_1.pt"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services, which are stopped at the end of the test."""
    started: list[ServiceProcess] = []

    def start(*options: str, name: str = "service") -> ServiceProcess:
        service = ServiceProcess(tmp_path / name, "--devices", "cpu", *options)
        started.append(service)
        return service.start()

    yield start
    for service in started:
        service.stop()


def begin(service: ServiceProcess, log: Path, **parameters: Any) -> int:
    """Post a checkpoint, and wait until its first step has begun."""
    service.put_suite("steps", {"kind": "steps", "log": str(log), **parameters})
    [evaluation] = service.post("run", 1, CHECKPOINT, ["steps"])
    wait_for(lambda: log.exists() and log.read_text() != "")
    return evaluation


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def steps_of(log: Path) -> list[str]:
    return [" ".join(line.split()[:2]) for line in log.read_text().splitlines()]


def test_a_second_service_is_refused_and_a_reader_beside_it_only_reads(
    serve: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    first = serve()
    evaluation = begin(first, tmp_path / "steps.log", shards=1, steps=1)
    first.wait(evaluation)
    command = [sys.executable, "-m", "evalsvc.cli", "serve", "--port", "0", "--data-dir", str(first.data_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"is served by another evalsvc (process {first.process.pid} on " in second.stderr
    assert "stop that one, or start this one with --read-only, beside it [database_in_use]" in second.stderr
    elsewhere = [*command, "--database-url", f"sqlite:///{tmp_path / 'other.db'}"]
    third = subprocess.run(elsewhere, capture_output=True, text=True, timeout=60)
    assert third.returncode == 2
    assert f"has the artifacts of another database, sqlite:///{first.data_dir}/evalsvc.db" in third.stderr
    assert "Traceback" not in second.stderr + second.stdout + third.stderr + third.stdout

    reader = serve("--data-dir", str(first.data_dir), "--read-only", name="reader")
    assert reader.history("run") == first.history("run") != {}
    ready = reader.request("GET", "/readyz")
    assert (ready["workers"], ready["read_only"]) == (0, True)
    refused = reader.ask("PUT", "/v1/suites/other", json={"tasks": [{"kind": "steps", "log": "x"}]})
    assert (refused.status_code, refused.json()["code"]) == (503, "read_only")
    assert "write to the other one of its database" in refused.json()["detail"]
    first.kill()
    assert reader.history("run") != {}
    first.start()
    assert first.history("run") == reader.history("run")


def test_a_draining_service_stores_what_runs_answers_and_keeps_what_is_posted(
    serve: Callable[..., ServiceProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At SIGTERM the door was closed first, and a training job that posted in the last seconds was told nothing."""
    monkeypatch.setenv("EVALSVC_GRACE", "60")
    service, log = serve(), tmp_path / "steps.log"
    evaluation = begin(service, log, shards=2, steps=30)
    assert service.process is not None
    process = service.process
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in service.ask("GET", "/readyz").text)
    assert service.ask("GET", "/readyz").status_code == 503
    [posted] = service.post("run", 2, CHECKPOINT, ["steps"])
    assert service.evaluation(evaluation)["state"] == "running"
    assert process.wait(timeout=90) == 0
    assert len(steps_of(log)) == 30, "the shard that ran, to its end, and no other"
    assert "Traceback" not in service.log.read_text()

    service.process = None
    service.start()
    for number in (evaluation, posted):
        assert service.wait(number)["state"] == "succeeded"
    [task] = service.evaluation(evaluation)["tasks"]
    assert task["shards"]["attempts"] == 2, "of the shards; what was running was not run again"


@pytest.mark.long
def test_what_outlasts_the_grace_is_queued_again_uncharged(
    serve: Callable[..., ServiceProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_GRACE", "0.5")
    monkeypatch.setenv("EVALSVC_MAX_ATTEMPTS", "1")
    service, log = serve(), tmp_path / "steps.log"
    evaluation = begin(service, log, shards=1, steps=40)
    service.stop()
    assert len(steps_of(log)) < 40
    service.start()
    assert service.wait(evaluation)["state"] == "succeeded"


@pytest.mark.parametrize("second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_second_signal_ends_it_at_once(
    serve: Callable[..., ServiceProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: signal.Signals
) -> None:
    monkeypatch.setenv("EVALSVC_GRACE", "600")
    service, log = serve(), tmp_path / "steps.log"
    evaluation = begin(service, log, shards=1, steps=100)
    assert service.process is not None
    process, workers = service.process, service.workers()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in service.ask("GET", "/readyz").text)
    process.send_signal(second)
    assert process.wait(timeout=10) == 128 + second
    assert "Traceback" not in service.log.read_text()
    assert "a second signal stops at once" in service.log.read_text()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    service.process = None
    service.start()
    assert service.evaluation(evaluation)["state"] == "running"
