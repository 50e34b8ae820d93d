"""Bad files given to `evalsvc run` and posted to a real service: the same words, and no harm done."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import archive, calling
from loss_task import LAYOUT, RECORDS, write
from service_process import ServiceProcess

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote.fetch import locate_checkpoint
from evalsvc.config import Settings
from evalsvc.errors import INSPECT, EvalsvcError, InvalidModelConfig
from evalsvc.families.reading import read_model_spec
from evalsvc.spec.suite import parse_suite
from evalsvc.worker.local import run_suite

SHAPE = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "seq_len": 16, "vocab_size": 112}
SHAPE |= dict.fromkeys(("post_embed_norm", "weight_tying"), False)


def torn(path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {"a": torch.ones(100_000)}}, path)
    os.truncate(path, path.stat().st_size // 2)


def unpickled(path: Path) -> None:
    archive(path, calling(os.system, f"touch {path.parent}/it-ran"))


def linked(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").symlink_to("/etc/passwd")


BAD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # name: how it is made, the code, the words; a worker finds the first two, the post refuses the others
    "torn.pt": (torn, "not_a_checkpoint", "is cut off: its zip directory is missing; copy or write it again"),
    "code.pt": (unpickled, "unsafe_checkpoint", "would run posix.system when it is opened, so it was not opened"),
    "linked": (linked, "checkpoint_not_allowed", "linked/model.safetensors' is, or links, outside the allowed folders"),
    "pipe.pt": (os.mkfifo, "checkpoint_not_allowed", "is not a regular file or folder on a disk"),
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


@pytest.fixture(autouse=True)
def _roots(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSVC_ROOTS", str(bad.parent))
    monkeypatch.setenv("EVALSVC_DEVICES", "cpu")


@pytest.fixture
def service(bad: Path, _roots: None, child_process: None) -> Iterator[ServiceProcess]:
    with ServiceProcess(bad.parent / "service") as running:
        running.put_suite("losses", {"kind": "loss", "data": str(bad.parent / "pairs.jsonl")})
        yield running


def test_the_service_says_what_is_wrong(service: ServiceProcess, bad: Path) -> None:
    """At the post, or as the error of the evaluation; innocent evaluations beside it are not touched."""
    file, layout = bad.parent / "good" / "checkpoints" / "epoch_1.pt", dict(LAYOUT)
    good = service.post("good", 1, file, ["losses"], layout=layout)
    good += service.post("good", 2, file, ["losses"], layout=layout, spool="copy")
    said: dict[str, dict[str, str]] = {}
    posted: dict[str, int] = {}
    for step, name in enumerate(BAD):
        body = {"run": "bad", "step": step, "uri": str(bad / name), "suites": ["losses"], "model": SHAPE}
        answer = service.ask("POST", "/v1/checkpoints", json=body)
        document = answer.json()
        if answer.status_code == 201:
            posted[name] = document["evaluations"][0]["id"]
        else:
            said[name] = {"code": document["code"], "message": document["detail"]}
    assert list(posted) == ["torn.pt", "code.pt"]
    for name, number in posted.items():
        evaluation = service.wait(number)
        assert evaluation["state"] == "failed"
        said[name] = evaluation["tasks"][0]["error"]
    for name, (_make, code, words) in BAD.items():
        assert said[name]["code"] == code, said[name]
        assert words in said[name]["message"], said[name]
        assert (INSPECT in said[name]["message"]) == (code != "checkpoint_not_allowed")
        assert "Traceback" not in said[name]["message"]
    assert [service.wait(number)["state"] for number in good] == ["succeeded"] * 2
    assert not (bad / "it-ran").exists()
    assert service.process is not None
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in maps, "the process that answers requests opens no weights"


def test_evalsvc_run_says_the_same(bad: Path) -> None:
    suite = parse_suite({"tasks": [{"kind": "loss", "data": str(bad.parent / "pairs.jsonl")}]}, "losses")
    for name, (_make, code, words) in BAD.items():
        try:
            path, _ = locate_checkpoint(str(bad / name), Settings.load())
        except EvalsvcError as error:
            found = {"code": error.code, "message": error.message}
        else:
            reference = CheckpointRef(path, model=SHAPE, label=name)
            found = run_suite(suite, reference, lambda *_: None).model_dump()["errors"]["loss"]
        assert found["code"] == code, found
        assert words in found["message"]
    assert not (bad / "it-ran").exists()


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 10**12), ("hidden_dim", 2**40), ("seq_len", 10**15)])
def test_a_model_of_an_absurd_size_is_refused_before_anything_is_allocated(field: str, value: int) -> None:
    with pytest.raises(InvalidModelConfig, match=f"{field} is '{value}': input should be less than or equal to"):
        read_model_spec({**SHAPE, field: value})
