"""A service as a process: it begins where no other is, and ends without losing what its workers do."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from service_process import CHECKPOINT, ServiceProcess, steps_begun

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("child_process")]


def test_a_second_service_is_refused_and_a_reader_beside_it_only_reads(
    serve: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    first = serve()
    evaluation = first.begin_steps(tmp_path / "steps.log", shards=1, steps=1)
    first.wait(evaluation)
    command = [sys.executable, "-m", "evalsvc.cli", "serve", "--port", "0", "--data-dir", str(first.data_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"is served by another evalsvc (process {first.process.pid} on " in second.stderr
    assert (
        "stop the other service; only `evalsvc serve --read-only` may run next to it [database_in_use]" in second.stderr
    )
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
    assert "send writes to the other service of its database" in refused.json()["detail"]
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
    evaluation = service.begin_steps(log, shards=2, steps=30)
    assert service.process is not None
    process = service.process
    process.send_signal(signal.SIGTERM)
    service.wait_until_it_drains()
    assert service.ask("GET", "/readyz").status_code == 503
    [posted] = service.post("run", 2, CHECKPOINT, ["steps"])
    assert service.evaluation(evaluation)["state"] == "running"
    assert process.wait(timeout=90) == 0
    assert steps_begun(log).total() == 30, "the shard that ran, to its end, and no other"
    assert "Traceback" not in service.log.read_text()

    service.process = None
    service.start()
    for number in (evaluation, posted):
        assert service.wait(number)["state"] == "succeeded"
    [task] = service.evaluation(evaluation)["tasks"]
    assert task["shards"]["attempts"] == 2, "of the shards; what was running was not run again"


def test_a_second_signal_ends_it_at_once(
    serve: Callable[..., ServiceProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_GRACE", "600")
    monkeypatch.setenv("EVALSVC_LOG_LEVEL", "info")
    service, log = serve(), tmp_path / "steps.log"
    evaluation = service.begin_steps(log, shards=1, steps=100)
    assert service.process is not None
    process, workers = service.process, service.workers()
    process.send_signal(signal.SIGINT)
    service.wait_until_it_drains()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert "Traceback" not in service.log.read_text()
    assert "a second signal stops immediately" in service.log.read_text()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    service.process = None
    service.start()
    assert service.evaluation(evaluation)["state"] == "running"
