"""The whole service from outside: real checkpoints posted to a real process, and workers that are killed."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Command, wait_for
from ports import free_port
from service_process import ServiceProcess

from evalsvc.cluster.certificates import write_certificates
from evalsvc.miniature import ROOT

pytestmark = pytest.mark.usefixtures("child_process")


@pytest.mark.long
def test_a_killed_worker_costs_an_attempt_and_moves_no_number_and_no_image(
    serve: Callable[..., ServiceProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_an_existing_scheduler_is_used_over_tls(serve: Callable[..., ServiceProcess], tmp_path: Path) -> None:
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
