"""Bad files given to `evalsvc run`, and some of them posted to a real service: the same words, and no harm done."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_files
import pytest
import torch
from hostile_files import archive, calling, entry, safetensors, tensor_pickle
from loss_task import LAYOUT, RECORDS, write
from service_process import ServiceProcess

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.config import Settings
from evalsvc.errors import EvalsvcError, InvalidModelConfig
from evalsvc.spec.model_config import read_model_spec
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite

HUGE = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "seq_len": 16, "post_embed_norm": False, "weight_tying": False}


def write_folder(path: Path, *links: tuple[str, str], **files: str) -> None:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    for name, target in links:
        (path / name).symlink_to(target)


def torn(path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {"a": torch.ones(100_000)}}, path)
    os.truncate(path, path.stat().st_size // 2)


def fill(folder: Path) -> None:
    folder.mkdir()
    for number in range(1001):
        (folder / f"{number}.pt").touch()


def unpickled(path: Path) -> None:
    archive(path, calling(os.system, f"touch {path.parent}/it-ran"))


def optimizer(path: Path) -> None:
    torch.save({"epoch": 7, "optimizer": {"state": {}}}, path)


BAD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # name: how it is made, the code, the words
    "torn.pt": (torn, "not_a_checkpoint", "is cut off: its zip directory is missing; copy or write it again"),
    "empty.pt": (Path.touch, "not_a_checkpoint", "is empty: was it still being written, or was the disk full?"),
    "code.pt": (unpickled, "unsafe_checkpoint", "wants to run posix.system when it is opened, so it was not opened"),
    "bomb.pt": (hostile_files.deflated, "not_a_checkpoint", "is a compressed zip, which torch.save never writes"),
    "claims.pt": (
        lambda path: archive(path, tensor_pickle((10**6, 10**6), (0, 0), 4), bytes(16)),
        "not_a_checkpoint",
        "4,000,000,000,000 bytes, of which the file has 16; save it contiguous",
    ),
    "header.safetensors": (
        lambda path: path.write_bytes((10**9).to_bytes(8, "little") + b'{"a":'),
        "not_a_checkpoint",
        "announces a safetensors header of 1,000,000,000 bytes, which no model has",
    ),
    "overlap.safetensors": (
        lambda path: safetensors(path, {"a": entry(0, 16), "b": entry(8, 16)}),
        "not_a_checkpoint",
        "is damaged",
    ),
    "picture.pt": (
        lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 a picture"),
        "not_a_checkpoint",
        "starts with ff d8 ff e0 20 61 20 70; a checkpoint is a torch.save file (zip or pickle) or safetensors",
    ),
    "optimizer_7.pt": (optimizer, "not_a_checkpoint", "holds the optimizer state of epoch 7 and no weights; post that"),
    "escape.pt": (
        lambda path: path.symlink_to("/etc/passwd"),
        "checkpoint_not_allowed",
        "lies, or leads by a link, outside the allowed folders",
    ),
    "shards": (
        lambda path: write_folder(path, **{"model.safetensors.index.json": '{"weight_map": {"a": "../../x"}}'}),
        "not_a_checkpoint",
        "names '../../x', which is not a weights file beside it",
    ),
    "linked": (
        lambda path: write_folder(path, ("model.safetensors", "/etc/passwd"), **{"config.json": "{}"}),
        "checkpoint_not_allowed",
        "linked/model.safetensors: lies, or leads by a link, outside the allowed folders",
    ),
    "many": (fill, "not_a_checkpoint", "holds more than 1,000 files, which no checkpoint does; post one of them"),
    "pipe.pt": (os.mkfifo, "checkpoint_not_allowed", "is not a regular file or folder on a disk"),
}
POSTED = ("torn.pt", "code.pt", "claims.pt", "escape.pt", "linked", "pipe.pt")
"""Those of `BAD` that a service is given: some that the post refuses, some that only a worker finds."""

ADDRESSES = {
    "file:///etc/passwd": ("checkpoint_not_allowed", "lies, or leads by a link, outside the allowed folders"),
    "/root/../etc/passwd": ("checkpoint_not_allowed", "lies, or leads by a link, outside the allowed folders"),
    "gopher://host/x.pt": ("checkpoint_not_allowed", "the scheme 'gopher' is not allowed, there is no support for it"),
    "s3://bucket/x.pt": (
        "checkpoint_not_allowed",
        "the scheme 's3' is not allowed, its operator allows it by",
    ),
    "https://169.254.169.254/latest": ("checkpoint_not_allowed", "the scheme 'https' is not allowed"),
    "zip://x::/etc/passwd": ("checkpoint_not_allowed", "chained addresses (::) are not allowed"),
    "/etc/pass\0wd": ("invalid_request", "has a character that cannot be stored"),
    "file:///etc/pass%00wd": ("checkpoint_not_allowed", "outside the allowed folders"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, open_lm_case: Path) -> Path:
    folder = tmp_path_factory.mktemp("root") / "bad"
    folder.mkdir()
    for name, (make, _code, _words) in BAD.items():
        make(folder / name)
    shutil.copytree(open_lm_case, folder.parent / "good")
    write(folder.parent / "pairs.jsonl", RECORDS)
    return folder


@pytest.fixture(scope="module")
def service(bad: Path, child_process: None) -> Iterator[ServiceProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALSVC_ROOTS", str(bad.parent))
        patch.setenv("EVALSVC_DEVICES", "cpu")
        running = ServiceProcess(bad.parent / "service")
        try:
            running.start()
            running.put_suite("losses", {"kind": "loss", "data": str(bad.parent / "pairs.jsonl")})
            yield running
        finally:
            running.stop()


def test_the_service_says_what_is_wrong(service: ServiceProcess, bad: Path) -> None:
    """At the post, or as the error of the evaluation; innocent evaluations beside it are not touched."""
    file, layout = bad.parent / "good" / "checkpoints" / "epoch_1.pt", dict(LAYOUT)
    good = service.post("good", 1, file, ["losses"], layout=layout)
    good += service.post("good", 2, file, ["losses"], layout=layout, spool="copy")
    said: dict[str, dict[str, str]] = {}
    posted: dict[str, int] = {}
    for step, uri in enumerate([*(str(bad / name) for name in POSTED), *ADDRESSES]):
        body = {"run": "bad", "step": step, "uri": uri, "suites": ["losses"], "model": "open_lm_test_tiny"}
        answer = service.ask("POST", "/v1/checkpoints", json=body)
        document = answer.json()
        if answer.status_code == 201:
            posted[uri] = document["evaluations"][0]["id"]
        else:
            said[uri] = {"code": document["code"], "message": document["detail"]}
    for uri, number in posted.items():
        evaluation = service.wait(number)
        assert evaluation["state"] == "failed"
        said[uri] = evaluation["tasks"][0]["error"]
    assert posted, "a worker finds some of them"
    expected = {str(bad / name): BAD[name][1:] for name in POSTED} | ADDRESSES
    for uri, (code, words) in expected.items():
        assert said[uri]["code"] == code, said[uri]
        assert words in said[uri]["message"], said[uri]
        assert "Traceback" not in said[uri]["message"]
    assert [service.wait(number)["state"] for number in good] == ["succeeded"] * 2
    assert not (bad / "it-ran").exists()
    assert service.process is not None
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in maps, "the process that answers requests opens no weights"


def test_evalsvc_run_says_the_same(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ROOTS", str(bad.parent))
    monkeypatch.setenv("EVALSVC_DEVICE", "cpu")
    suite = parse_suite({"tasks": [{"kind": "loss", "data": str(bad.parent / "pairs.jsonl")}]}, "losses")
    for name, (_make, code, words) in BAD.items():
        try:
            path, _ = locate_checkpoint(str(bad / name), Settings.load())
        except EvalsvcError as error:
            found = {"code": error.code, "message": error.message}
        else:
            reference = CheckpointRef(path, model={**HUGE, "vocab_size": 112}, label=name)
            found = run_suite(suite, reference, lambda *_: None)["errors"]["loss"]
        assert found["code"] == code, found
        assert words in found["message"]
    assert not (bad / "it-ran").exists()


def test_a_model_of_an_absurd_size_is_refused_before_anything_is_allocated(service: ServiceProcess, bad: Path) -> None:
    for field, value in {"vocab_size": 10**12, "hidden_dim": 2**40, "n_layers": 10**9, "seq_len": 10**15}.items():
        model = {**HUGE, "vocab_size": 112, field: value}
        body = {"run": "absurd", "step": 1, "uri": str(bad / "empty.pt"), "suites": ["losses"], "model": model}
        answer = service.ask("POST", "/v1/checkpoints", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_model_config")
        assert f"{field} is '{value}': input should be less than or equal to" in answer.json()["detail"]


def test_a_model_json_that_is_deep_or_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, deep = json.dumps({"a": "x" * 2_000_000}), '{"hidden_dim":' + "[" * 100_000
    for content in (deep, long, '{"hidden_dim": 1' + "0" * 9999):
        (tmp_path / "model.json").write_text(content)
        with pytest.raises(InvalidModelConfig, match=r"model\.json is (not JSON|larger than 1,000,000 bytes)"):
            read_model_spec(str(tmp_path / "model.json"))
