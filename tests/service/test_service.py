"""The whole service from outside: real checkpoints posted to a real process, its workers and itself killed."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Security
from safetensors.torch import load_file, save_file
from service_process import ServiceProcess

from evalsvc.miniature import ROOT
from evalsvc.models import Transformer
from evalsvc.spec.model_config import ModelConfig

pytestmark = pytest.mark.usefixtures("child_process")

CONFIG = {
    "hidden_dim": 128,
    "n_layers": 8,
    "n_heads": 4,
    "seq_len": 128,
    "vocab_size": 320,
    "post_embed_norm": False,
    "weight_tying": False,
}
LAYOUT = {"text": {"offset": 0, "size": 256}, "image": {"offset": 256, "size": 64}}
SHARDS = 8

FORGETTING_TABLE = {
    # step or run: text NLL, within text, image mass on stories; text NLL, image NLL, within image, total on pairs
    "step0": (1.1693, 1.1693, 0.0000, 0.6857, 16.6982, 5.6136, 14.4929),
    "imgonly_step25": (7.4993, 6.9397, 0.4257, 8.1885, 5.9509, 5.3241, 6.2591),
    "imgonly_step400": (13.0095, 7.9932, 0.9911, 13.4962, 3.9804, 3.9781, 5.2910),
    "replay_step25": (1.2512, 1.2512, 0.0000, 0.7539, 6.0582, 5.3225, 5.3277),
}
FORGETTING_METRICS = (
    "stories/text",
    "stories/text_within",
    "stories/image_mass",
    "pairs/text",
    "pairs/image",
    "pairs/image_within",
    "pairs/total",
)
FORGETTING_LAYOUT = {"text": {"offset": 0, "size": 512}, "image": {"offset": 512, "size": 256}}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services, which are stopped at the end of the test."""
    started: list[ServiceProcess] = []

    def start(*options: str, name: str = "service") -> ServiceProcess:
        service = ServiceProcess(tmp_path / name, *options)
        started.append(service)
        return service.start()

    yield start
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is large enough for an evaluation to be caught in the middle."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    model = Transformer(ModelConfig.model_validate(CONFIG))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"epoch": 1, "step": 100, "state_dict": model.state_dict()}, folder / "epoch_1.pt")
    (folder.parent / "model.json").write_text(json.dumps(CONFIG))
    return folder / "epoch_1.pt"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with file.open("w") as stream:
        for _ in range(400):
            text, codes = chance.choices(range(256), k=chance.randint(8, 40)), chance.choices(range(64), k=64)
            stream.write(json.dumps({"text_ids": text, "image_codes": codes}) + "\n")
    return file


def loss_task(data: Path, **parameters: Any) -> dict[str, Any]:
    return {"kind": "loss", "data": str(data), **parameters}


def attempts(evaluation: dict[str, Any]) -> int:
    return sum(task["shards"]["attempts"] for task in evaluation["tasks"])


def wait_for_finished_shards(service: ServiceProcess, evaluation: int, finished: int) -> None:
    """Until more than `finished` run shards are done, and others are not."""
    deadline = time.monotonic() + 60
    while True:
        [task] = service.evaluation(evaluation)["tasks"]
        if task["shards"]["succeeded"] > finished:
            assert task["state"] == "running", "the evaluation was over before it could be disturbed"
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pairs: Path) -> dict[str, float]:
    """The values of an evaluation that nothing happened to."""
    service = ServiceProcess(tmp_path_factory.mktemp("undisturbed"), "--devices", "cpu,cpu").start()
    try:
        service.put_suite("loss8", loss_task(pairs, shards=SHARDS))
        [evaluation] = service.post("run", 100, checkpoint, ["loss8"], layout=LAYOUT)
        assert service.wait(evaluation)["state"] == "succeeded"
        return {metric: value for (metric, _), value in service.history("run").items()}
    finally:
        service.stop()


@pytest.mark.long
def test_a_killed_worker_costs_its_shard_one_more_attempt_and_nothing_else(
    serve: Callable[..., ServiceProcess], checkpoint: Path, pairs: Path, undisturbed: dict[str, float]
) -> None:
    service = serve("--devices", "cpu,cpu")
    service.put_suite("loss8", loss_task(pairs, shards=SHARDS))
    [evaluation] = service.post("run", 100, checkpoint, ["loss8"], layout=LAYOUT)
    wait_for_finished_shards(service, evaluation, 1)
    service.workers()[0].kill()
    done = service.wait(evaluation)
    assert done["state"] == "succeeded", done
    assert attempts(done) == SHARDS + 1
    assert {metric: value for (metric, _), value in service.history("run").items()} == undisturbed


@pytest.mark.long
def test_a_killed_service_goes_on_with_what_was_unfinished(
    serve: Callable[..., ServiceProcess], checkpoint: Path, pairs: Path, undisturbed: dict[str, float]
) -> None:
    service = serve("--devices", "cpu,cpu")
    service.put_suite("loss8", loss_task(pairs, shards=SHARDS))
    [evaluation] = service.post("run", 100, checkpoint, ["loss8"], layout=LAYOUT)
    wait_for_finished_shards(service, evaluation, 1)
    service.kill()
    service.start()
    done = service.wait(evaluation)
    assert done["state"] == "succeeded", done
    assert SHARDS < attempts(done) <= SHARDS + 2, "only the shards that two workers were running run again"
    assert {metric: value for (metric, _), value in service.history("run").items()} == undisturbed


def test_a_checkpoint_that_is_replaced_while_it_is_evaluated_fails_with_the_reason(
    serve: Callable[..., ServiceProcess], checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    """Else one value would be of two files. A worker that has the first one loaded
    may go on with it; one that begins may not."""
    file = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    file.parent.mkdir(parents=True)
    (file.parent.parent / "model.json").write_text(json.dumps(CONFIG))
    file.write_bytes(checkpoint.read_bytes())
    service = serve("--devices", "cpu")
    service.put_suite("loss8", loss_task(pairs, shards=SHARDS, limit=160))
    [evaluation] = service.post("run", 100, file, ["loss8"], layout=LAYOUT)
    wait_for_finished_shards(service, evaluation, 1)
    content, times = file.read_bytes(), file.stat()
    file.with_suffix(".new").write_bytes(content[:-1] + b"x")
    file.with_suffix(".new").rename(file)
    service.workers()[0].kill()
    failed = service.wait(evaluation)
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "checkpoint_changed"
    assert service.history("run") == {}
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    service.request("POST", f"/v1/evaluations/{evaluation}/retry")
    assert service.wait(evaluation)["state"] == "succeeded"


@pytest.fixture
def second(checkpoint: Path, tmp_path: Path) -> Path:
    """Another checkpoint of the same model."""
    content = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(1)
    content["state_dict"] = {name: torch.randn_like(tensor) * 0.05 for name, tensor in content["state_dict"].items()}
    torch.save(content, tmp_path / "epoch_2.pt")
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    return tmp_path / "epoch_2.pt"


@pytest.mark.long
def test_a_virtual_checkpoint_outlives_a_killed_service_and_notices_a_replaced_parent(
    serve: Callable[..., ServiceProcess], checkpoint: Path, second: Path, pairs: Path, tmp_path: Path
) -> None:
    first, other = (torch.load(path, weights_only=True)["state_dict"] for path in (checkpoint, second))
    torch.save({name: (first[name] + other[name]) / 2 for name in first}, tmp_path / "mean.pt")
    service = serve("--devices", "cpu,cpu")
    service.put_suite("loss8", loss_task(pairs, shards=SHARDS, limit=200))
    service.post("run", 100, checkpoint, [], layout=LAYOUT)
    service.post("run", 200, second, [], layout=LAYOUT)
    [evaluation] = service.post("mix", 50, Path("avg(run@100, run@200)"), ["loss8"])
    wait_for_finished_shards(service, evaluation, 1)
    service.kill()
    service.start()
    done = service.wait(evaluation)
    assert done["state"] == "succeeded", done
    assert SHARDS < attempts(done) <= SHARDS + 2

    [plain] = service.post("plain", 50, tmp_path / "mean.pt", ["loss8"], layout=LAYOUT, priority=1)
    [late] = service.post("mix", 75, Path("lerp(run@100, run@200, 0.75)"), ["loss8"])
    wait_for_finished_shards(service, plain, 0)
    content, times = second.read_bytes(), second.stat()
    second.write_bytes(b"what the trainer wrote in its place")
    failed = service.wait(late)
    assert service.wait(plain)["state"] == "succeeded"
    assert service.history("mix", name="loss/text").keys() == {("loss/text", 50)}
    assert service.history("mix") == pytest.approx(service.history("plain"), rel=1e-6)
    assert failed["error"]["code"] == "checkpoint_changed"
    assert failed["error"]["message"].startswith("run 'mix' step 75: run 'run' step 200: ")

    second.write_bytes(content)
    os.utime(second, ns=(times.st_atime_ns, times.st_mtime_ns))
    service.request("POST", f"/v1/evaluations/{late}/retry")
    assert service.wait(late)["state"] == "succeeded"
    [row, *_] = service.request("GET", f"/v1/checkpoints/{done['checkpoint']}")["parents"]
    assert row == {"name": "run@100", "checkpoint": 1, "sha256": sha256_of(checkpoint), "replaced_at": None}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.long
def test_two_protocols_are_two_series_and_a_variant_is_another(
    serve: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    case = Path(__file__).parents[1] / "golden" / "open_lm" / "14_all_defaults_ema_optimizer_t2i_vocab" / "checkpoints"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text_ids": [1, 2, 3, index]}) + "\n" for index in range(20)))
    service = serve("--devices", "cpu")
    service.put_suite("ten", loss_task(data, limit=10))
    service.put_suite("twenty", loss_task(data, limit=20))
    first, _ = (service.wait(item) for item in service.post("run", 1, case / "epoch_1.pt", ["ten", "twenty"]))
    series = service.request("GET", "/v1/runs/run/metrics", params={"name": "loss/text"})["series"]
    assert sorted(item["n"] for item in series) == [[10], [20]]
    before = {item["protocol"]: item["value"] for item in series}
    assert len(before) == 2

    again = service.request("POST", "/v1/evaluations", json={"checkpoint": first["checkpoint"], "suite": "ten"})
    assert again["id"] > first["id"]
    service.wait(again["id"])
    [ema] = service.post("run", 1, case / "ema_0.9_1_1.pt", ["ten"], variant="ema_0.9")
    assert service.wait(ema)["state"] == "succeeded"
    series = service.request("GET", "/v1/runs/run/metrics", params={"name": "loss/text"})["series"]
    raw = {item["protocol"]: item["value"] for item in series if item["variant"] == "raw"}
    averaged = [item["value"] for item in series if item["variant"] == "ema_0.9"]
    assert raw == before
    assert len(averaged) == 1
    assert averaged[0] not in raw.values()


@pytest.mark.long
def test_the_history_of_forgetting_checkpoints_equals_the_reference(
    serve: Callable[..., ServiceProcess], shared: Path, tmp_path: Path
) -> None:
    folder = shared / "golden" / "stories260k_openlm" / "forgetting"
    tasks = [
        loss_task(folder / "heldout_stories.jsonl", name="stories"),
        loss_task(folder / "heldout_pairs.jsonl", name="pairs", shards=4),
    ]
    service = serve("--devices", "cpu,cpu")
    service.put_suite("forgotten", *tasks)
    posts = [("imgonly", 0, "step0"), ("imgonly", 400, "imgonly_step400"), ("imgonly", 25, "imgonly_step25")]
    fields = {"model": str(folder / "t2i_260k.json"), "layout": FORGETTING_LAYOUT}
    evaluations = {
        file: service.post(run, step, folder / f"t2i_260k_{file}.pt", ["forgotten"], **fields)[0]
        for run, step, file in [*posts, ("replay", 25, "replay_step25")]
    }
    for evaluation in evaluations.values():
        assert service.wait(evaluation)["state"] == "succeeded"
    history = service.history("imgonly")
    for _, step, file in posts:
        assert_reference([history[metric, step] for metric in FORGETTING_METRICS], file)
    history = service.history("replay")
    assert_reference([history[metric, 25] for metric in FORGETTING_METRICS], "replay_step25")

    suite, result = tmp_path / "forgetting.json", tmp_path / "result.json"
    suite.write_text(json.dumps({"tasks": tasks}))
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps(FORGETTING_LAYOUT))
    command = ["run", str(suite), "--checkpoint", str(folder / "t2i_260k_imgonly_step25.pt"), "--output", str(result)]
    options = ["--model", fields["model"], "--layout", str(layout)]
    subprocess.run([sys.executable, "-m", "evalsvc.cli", *command, *options], check=True, capture_output=True)
    values = {metric["name"]: metric["value"] for metric in json.loads(result.read_text())["metrics"]}
    for metric in FORGETTING_METRICS:
        assert values[metric] == pytest.approx(service.history("imgonly")[metric, 25], rel=1e-5, abs=1e-9)


def assert_reference(values: list[float], file: str) -> None:
    for value, expected in zip(values, FORGETTING_TABLE[file], strict=True):
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-4), file


def test_an_existing_scheduler_is_used_over_tls(
    serve: Callable[..., ServiceProcess], checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    security = Security.temporary()
    tls = {"ca": security.tls_ca_file, "cert": security.tls_client_cert, "key": security.tls_client_key}
    for name, content in tls.items():
        (tmp_path / f"{name}.pem").write_text(content)
    options = [text for name in tls for text in (f"--tls-{name}", str(tmp_path / f"{name}.pem"))]
    dask_options = [text.replace("--tls-ca", "--tls-ca-file") for text in options]
    address_file = tmp_path / "scheduler.json"
    listen = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--protocol", "tls"]
    command = ["-m", "distributed.cli.dask_scheduler", *listen, "--scheduler-file", str(address_file), *dask_options]
    scheduler = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    processes = [scheduler]
    try:
        deadline = time.monotonic() + 30
        while not address_file.exists() or not address_file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(address_file.read_text())["address"]
        worker = [sys.executable, "-m", "evalsvc.cli", "worker", address, "--device", "cpu", *options]
        processes.append(subprocess.Popen(worker, stderr=subprocess.DEVNULL))
        service = serve("--scheduler", address, *options)
        service.put_suite("loss8", loss_task(pairs, limit=40, shards=2))
        [evaluation] = service.post("run", 100, checkpoint, ["loss8"], layout=LAYOUT)
        assert service.wait(evaluation)["state"] == "succeeded"
        assert service.workers() == []
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(timeout=20)


@pytest.mark.long
def test_a_killed_worker_moves_no_token_of_an_image_task(
    serve: Callable[..., ServiceProcess], inception_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALSVC_ASSETS", str(inception_path.parent))
    monkeypatch.setenv("EVALSVC_THREADS", "1")
    last, layout = ROOT / "runs" / "pretrained" / "checkpoints" / "epoch_5.pt", ROOT / "runs" / "layout.yaml"
    save_file({"images": load_file(ROOT / "images.safetensors")["images"][:72]}, tmp_path / "real.safetensors")
    task = {
        "kind": "text_to_image",
        "name": "digits",
        "captions": str(ROOT / "captions.jsonl"),
        "samples": 72,
        "decoder": str(ROOT / "movqgan" / "movqgan_miniature.ckpt"),
        "reference": str(tmp_path / "real.safetensors"),
        "classifier": str(ROOT / "classifier.safetensors"),
        "metrics": ["fid64"],
        "batch": 12,
        "shard_size": 12,
        "keep": 72,
    }
    service = serve("--devices", "cpu,cpu")
    service.put_suite("digits", task)
    [evaluation] = service.post("pretrained", 3000, last, ["digits"], layout=str(layout))
    wait_for_finished_shards(service, evaluation, 8)  # 6 are of the reference
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
    alone = json.loads(result.read_text())
    files = {path.name: path for path in (tmp_path / "result" / "digits").iterdir()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == digests
    history = service.history("pretrained")
    for metric in alone["metrics"]:
        assert history[metric["name"], 3000] == pytest.approx(metric["value"], rel=1e-9)
