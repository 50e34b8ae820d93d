"""hf:// over the hub's own protocol, spoken by a server of the tests' own."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import fake_hub

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.checkpoints.remote import objects
from evalsvc.checkpoints.remote.fetch import fetched, locate_checkpoint
from evalsvc.config import Settings
from evalsvc.errors import CheckpointNotFound


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    files = {"run/epoch_1.pt": b"weights" * 1000, "hf/model.safetensors": b"weights", "hf/config.json": b"{}"}
    with fake_hub("models/owner/repo", files) as (address, _asked):
        monkeypatch.setitem(objects.OPTIONS, "hf", {**objects.OPTIONS["hf"], "endpoint": address, "token": False})
        yield files


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path), schemes="hf")


def test_a_file_of_a_revision(hub: dict[str, bytes], settings: Settings) -> None:
    uri = "hf://owner/repo/run/epoch_1.pt@v1"
    identity = locate_checkpoint(uri, settings)[1]
    assert identity.size == 7000
    assert identity.etag == hashlib.sha256(hub["run/epoch_1.pt"]).hexdigest(), "the hub knows the digest itself"
    with fetched([CheckpointRef(uri, identity)], settings, lambda _: None) as (here,):
        assert Path(here.path).read_bytes() == hub["run/epoch_1.pt"]
        assert Path(here.path).name == "epoch_1.pt"


def test_a_folder(hub: dict[str, bytes], settings: Settings) -> None:
    uri = "hf://owner/repo/hf"
    with fetched([CheckpointRef(uri, locate_checkpoint(uri, settings)[1])], settings, lambda _: None) as (here,):
        assert {path.name: path.read_bytes() for path in Path(here.path).iterdir()} == {
            "model.safetensors": b"weights",
            "config.json": b"{}",
        }


@pytest.mark.parametrize("uri", ["hf://owner/repo/none.pt", "hf://owner/other/x.pt"])
def test_nothing_there(hub: dict[str, bytes], settings: Settings, uri: str) -> None:
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        locate_checkpoint(uri, settings)
