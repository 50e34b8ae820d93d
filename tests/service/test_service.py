"""The whole service from outside: real checkpoints posted to a real process, and workers that are killed."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import Laboratory
from machines import Command, Machines, free_port, wait_for
from miniature_run import DECODER, LAYOUT
from posts_and_results import submission
from queue_steps import enter
from safetensors.numpy import load_file, save_file
from service_process import CHECKPOINT, Serve, steps_begun
from sqlalchemy import select
from tiny_vision import write_clip

from evalsvc.checkpoints.reference import identify
from evalsvc.cluster.certificates import write_certificates
from evalsvc.files.kept import claim_shared
from evalsvc.miniature import ROOT
from evalsvc.spec.suite import parse_suite
from evalsvc.store.queue import transitions
from evalsvc.store.tables import Shard, Task

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


def test_a_second_service_is_refused_and_a_reader_only_reads(
    serve: Serve, refusal: Callable[..., str], tmp_path: Path
) -> None:
    first = serve()
    evaluation = first.begin_steps(tmp_path / "steps.log", shards=1, steps=1)
    first.wait(evaluation)
    second = refusal(first.data_dir)
    assert f"is served by another evalsvc (process {first.process.pid} on " in second
    assert "only `evalsvc serve --read-only` may run next to it [database_in_use]" in second
    third = refusal(first.data_dir, "--database-url", f"sqlite:///{tmp_path / 'other.db'}")
    assert f"has the artifacts of another database, sqlite:///{first.data_dir}/evalsvc.db" in third
    reader = serve("--data-dir", str(first.data_dir), "--read-only", name="reader")
    assert reader.history("run") == first.history("run") != {}
    assert (
        reader.ask("PUT", "/v1/suites/other", json={"tasks": [{"kind": "steps", "log": "x"}]}).json()["code"]
        == "read_only"
    )
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


# Workers with data folders of their own, which see statistics, answers and outputs in the shared folder


class Site:
    """A service in this process, and workers of its scheduler, each with an empty data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines = Machines(folder / "machines")
        self.laboratory = Laboratory(folder)
        self.shared = self.laboratory.data / "shared"
        claim_shared(self.shared, "this service")
        self.mounted = folder / "mounted"
        self.mounted.symlink_to(self.shared)
        self.coordinator = self.laboratory.start(**self.machines.settings())
        self._started = 0

    def start_worker(self, shared: Path | None = None) -> Command:
        self._started += 1
        data = self.folder / f"worker-{self._started}"
        self.machines.environment = {"EVALSVC_DATA_DIR": str(data), "EVALSVC_SHARED": str(shared or self.mounted)}
        worker = self.machines.start_worker()
        self.laboratory.wait_until(lambda _: self.coordinator.workers() == 1)
        return worker

    def stop_worker(self, worker: Command) -> None:
        worker.stop()
        self.laboratory.wait_until(lambda _: self.coordinator.workers() == 0)

    def evaluate(self, step: int, suite_name: str, **task: Any) -> tuple[Task, list[str]]:
        """The task, once it is over, and the kinds of shards that it was cut into."""
        weights = ROOT / "runs" / "pretrained" / "checkpoints" / f"epoch_{step}.pt"
        suite = parse_suite({"tasks": [task]}, suite_name)
        posted = submission(
            step, uri=str(weights), path=str(weights), identity=identify(weights), layout=LAYOUT, run="run-a"
        )
        [evaluation] = enter(self.laboratory.store, posted, suite)
        self.laboratory.wake()
        self.laboratory.wait(evaluation, 300)
        with self.laboratory.store.reading() as session:
            [done] = session.scalars(select(Task).where(Task.evaluation_id == evaluation))
            query = select(Shard.payload).where(Shard.task_id == done.id, Shard.stage == "run").order_by(Shard.index)
            return done, [str((payload or {}).get("part")) for payload in session.scalars(query)]

    def close(self) -> None:
        self.laboratory.close()
        self.machines.stop()


@pytest.mark.timeout(600)
def test_features_are_computed_once_and_answers_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second worker has seen neither the real images' features nor the base's answers.

    A worker without the folder fails its shards, which are tried again: the results of a merge would be lost.
    """
    (tmp_path / "clip").mkdir()
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:40]}, tmp_path / "real.safetensors")
    images: dict[str, Any] = {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 24,
        "decoder": DECODER,
        "reference": str(tmp_path / "real.safetensors"),
        "clip": str(write_clip(tmp_path / "clip")),
        "metrics": ["cmmd"],
        "batch": 24,
        "keep": 0,
        "shard_size": 20,
    }
    questions = {"kind": "language", "benchmarks": ["cloze"], "include_path": [str(ROOT)], "limit": 12}
    with closing(Site(tmp_path)) as site:
        worker = site.start_worker()
        computed, parts = site.evaluate(5, "images", **images)
        assert parts == ["reference", "reference", "sample", "sample"]
        asked, _ = site.evaluate(0, "text", **questions)
        assert [shard["answers_reused"] for shard in asked.provenance["shards"]] == [0]
        kept = sorted(path.name[64:] for path in (site.shared / "statistics").glob("*.npz"))
        assert kept == [".features.npz", ".moments.npz"], "the service has them"
        assert not (tmp_path / "worker-1" / "statistics").exists(), "and not the worker"
        site.stop_worker(worker)
        worker = site.start_worker()
        found, parts = site.evaluate(5, "images-again", **{**images, "shard_size": 12})
        assert parts == ["sample", "sample"], "nothing was computed again, not by the merge either"
        # Parts of another size round features otherwise, and a small CMMD is a difference of means that are close to 1.
        assert [metric["value"] for metric in found.metrics] == pytest.approx(
            [metric["value"] for metric in computed.metrics], rel=1e-5, abs=1e-7
        )
        again, _ = site.evaluate(0, "text-again", **questions, shard_size=6)
        assert sum(shard["answers_reused"] for shard in again.provenance["shards"]) == 4 * 12
        assert again.metrics == asked.metrics
        site.stop_worker(worker)
        monkeypatch.setattr(transitions, "FIRST_BACK_OFF", 0.1)
        site.start_worker(tmp_path / "elsewhere")
        failed, _ = site.evaluate(0, "text-lost", **questions | {"limit": 2})
        assert failed.error["code"] == "source_unreachable"
        assert f"cannot use {tmp_path / 'elsewhere'} as the folder" in failed.error["message"]
