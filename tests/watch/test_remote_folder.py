"""A folder elsewhere, by fsspec's own store in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from app_in_process import App, app_in_process

from evalsvc.client import Client
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotAllowed, InvalidRequest
from evalsvc.watch.completeness import Classifier, Memory
from evalsvc.watch.folders import RemoteFolder
from evalsvc.watch.watcher import Posting, Watcher

PLACE = "memory://bucket/run"
CONFIG = {"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 8}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in_process(tmp_path / "data", schemes="file,memory") as app:
        app.http.put("/v1/runs/run-a/plan", json={"suites": [{"suite": "loss", "every": 1}]}).raise_for_status()
        yield app
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def write(name: str, content: bytes = b"weights") -> None:
    fsspec.filesystem("memory").pipe_file(f"/bucket/run/{name}", content)


class Scene:
    def __init__(self, app: App, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.noted: list[str] = []
        client = Client("http://evalsvc", transport=app.transport)
        classifier = Classifier(Memory(tmp_path / "memory.json"), settle=0, steps_per_epoch=100)
        place = RemoteFolder(PLACE + "/", app.settings)
        self.watcher = Watcher(place, client, Posting("run-a"), classifier, self.said.append, self.noted.append)


def test_files_and_folders_are_posted_once(app: App, tmp_path: Path) -> None:
    scene = Scene(app, tmp_path)
    scene.watcher.look()  # there is nothing yet, not even the folder
    write("checkpoints/epoch_3.pt")
    write("checkpoints/optimizer_3.pt")
    write("step_50.safetensors")
    for _ in range(2):
        scene.watcher.look()
    posted = app.http.get("/v1/runs/run-a").json()["checkpoints"]
    assert {item["step"]: item["uri"] for item in posted} == {
        50: f"{PLACE}/step_50.safetensors",
        300: f"{PLACE}/checkpoints/epoch_3.pt",
    }
    assert len(scene.said) == 2
    again = Scene(app, tmp_path)
    again.watcher.look()
    assert (again.said, again.noted) == ([], [])


def test_another_object_in_the_place_is_said(app: App, tmp_path: Path) -> None:
    scene = Scene(app, tmp_path)
    write("epoch_3.pt")
    scene.watcher.look()
    write("epoch_3.pt", b"others")
    for _ in range(2):
        scene.watcher.look()
    (noted,) = scene.noted
    assert "epoch_3.pt is not posted: run 'run-a' has a checkpoint at step 300" in noted


def test_a_folder_waits_for_all_its_shards(app: App, tmp_path: Path) -> None:
    scene = Scene(app, tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    write("checkpoint-500/model-1.safetensors")
    write("checkpoint-500/config.json", json.dumps(CONFIG).encode())
    scene.watcher.look()
    write("checkpoint-500/model.safetensors.index.json", json.dumps(index).encode())
    scene.watcher.look()
    assert scene.said == []
    assert scene.noted[0].startswith("checkpoint-500 is not complete: it has none of model.safetensors.index.json")
    assert scene.noted[1:] == ["checkpoint-500 is not complete: the folder lacks model-2.safetensors"]
    write("checkpoint-500/model-2.safetensors")
    scene.watcher.look()
    assert [line.partition(":")[0] for line in scene.said] == ["checkpoint-500"], scene.noted


def test_what_may_not_be_read_or_cannot_be_listed() -> None:
    with pytest.raises(CheckpointNotAllowed, match="EVALSVC_SCHEMES"):
        RemoteFolder("s3://bucket/run", Settings())
    with pytest.raises(InvalidRequest, match="cannot be listed by"):
        RemoteFolder("https://example.org/run", Settings(schemes="https"))
