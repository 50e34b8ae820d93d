"""The whole service from outside: real checkpoints posted to a real process, and workers that are killed."""

import hashlib
import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from laboratory import Laboratory
from machines import Command, free_port, wait_for
from service_process import CHECKPOINT, Serve, steps_begun

from evalsvc.cluster.certificates import write_certificates
from evalsvc.miniature import ROOT

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("child_process")]


@pytest.mark.long
def test_a_killed_worker_moves_no_number(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service finds what `evalsvc run` finds in one process, to the last pixel."""
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    last, layout = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt", ROOT / "runs" / "layout.yaml"
    task = {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 72,
        "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
        "classifier": str(ROOT / "classifier.safetensors"),
        "metrics": [],
        "batch": 12,
        "shard_size": 12,
        "keep": 72,
    }
    service = serve(devices="cpu,cpu")
    service.put_suite("digits", task)
    [evaluation] = service.post("pretrained", 3000, last, ["digits"], layout=str(layout))
    wait_for(lambda: service.evaluation(evaluation)["tasks"][0]["shards"]["succeeded"] > 1, "two shards")
    service.workers()[0].kill()
    done = service.wait(evaluation)
    assert done["state"] == "succeeded", done
    [shards] = [item["shards"] for item in done["tasks"]]
    assert shards["attempts"] == shards["total"] + 1
    artifacts = service.request("GET", f"/v1/evaluations/{evaluation}/artifacts")["artifacts"]
    digests = {item["name"]: item["sha256"] for item in artifacts}
    assert len(digests) == 73

    suite, result = tmp_path / "digits.json", tmp_path / "result.json"
    suite.write_text(json.dumps({"tasks": [task]}))
    command = ["run", str(suite), "--checkpoint", str(last), "--layout", str(layout), "--output", str(result)]
    subprocess.run([sys.executable, "-m", "evalsvc.cli", *command], check=True, capture_output=True)
    files = {path.name: path for path in (tmp_path / "result" / "digits").iterdir()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == digests
    history = service.history("pretrained")
    for metric in json.loads(result.read_text())["metrics"]:
        assert history[metric["name"], 3000] == pytest.approx(metric["value"], rel=1e-9)


def test_an_existing_scheduler_is_used_over_tls(serve: Serve, tmp_path: Path) -> None:
    """One of Dask's own, that was there before."""
    tls = {name.removesuffix(".pem"): str(file) for name, file in write_certificates(tmp_path / "tls").items()}
    options = ["--tls", str(tmp_path / "tls")]
    port = free_port()
    address = f"tls://127.0.0.1:{port}"
    listen = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--protocol", "tls"]
    dask_options = ["--tls-ca-file", tls["ca"], "--tls-cert", tls["cert"], "--tls-key", tls["key"]]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *listen, *dask_options]
    scheduler = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    shared = {"EVALSVC_SHARED": str(tmp_path / "service" / "shared")}
    worker = Command(tmp_path / "worker.log", ["worker", address, "--devices", "cpu", *options], **shared)
    try:
        worker.wait_for_text(r"worker (tls://\S+) on")
        service = serve("--scheduler", address, *options)
        evaluation = service.begin_steps(tmp_path / "steps.log", shards=2, steps=1)
        assert service.wait(evaluation)["state"] == "succeeded"
        assert service.workers() == []
    finally:
        worker.stop()
        scheduler.terminate()
        scheduler.wait(timeout=20)


def test_evaluations_on_workers_of_its_own(tmp_path: Path) -> None:
    """One runs on all workers, with progress, and another one kills them."""
    with closing(Laboratory(tmp_path)) as laboratory:
        coordinator = laboratory.start(max_attempts=2)
        poisoned = laboratory.post("poisoned", shards=3, poison=1)
        evaluation = laboratory.post(shards=8, seconds=0.1)
        laboratory.wait_until(lambda _: any(live.done for live in coordinator.live().values()))
        assert laboratory.succeeds(evaluation)
        code, message = laboratory.failure(poisoned)
        assert code == "worker_died"
        assert "2 times (the last time, it was killed by signal 9 (SIGKILL))" in message
        assert laboratory.outcomes("poisoned")["worker_died"] == 2
        assert laboratory.outcomes() == {"succeeded": 8}
        assert set(laboratory.steps().values()) == {1}
        assert len({worker for *_, worker in laboratory.log()}) >= 2
        laboratory.wait_until(lambda _: coordinator.workers() == 2)


def test_a_second_service_is_refused_and_a_reader_only_reads(serve: Serve, tmp_path: Path) -> None:
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


def test_a_draining_service_stores_what_runs(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At SIGTERM the door was closed first, and a training job that posted in the last seconds was told nothing."""
    monkeypatch.setenv("EVALSVC_GRACE", "60")
    service, log = serve(), tmp_path / "steps.log"
    evaluation = service.begin_steps(log, shards=2, steps=30)
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


def test_a_second_signal_ends_it_at_once(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
