"""A run in an object store is posted as one on a disk is: its model is found beside the weights."""

import json
import time
from pathlib import Path

import fsspec
import pytest

from evalsvc.checkpoints import posted
from evalsvc.checkpoints.posted import MAX_MODEL_FILES, remote_model
from evalsvc.config import Settings
from evalsvc.errors import InvalidModelConfig, SourceUnreachable
from evalsvc.families.reading import find_model_config

SETTINGS = Settings(schemes="memory")
MODEL = {
    "hidden_dim": 24,
    "n_layers": 2,
    "n_heads": 2,
    "seq_len": 64,
    "vocab_size": 112,
    "post_embed_norm": False,
    "weight_tying": False,
}


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    found = fsspec.filesystem("memory")
    if found.exists("/beside"):
        found.rm("/beside", recursive=True)
    found.pipe("/beside/run/checkpoints/epoch_1.pt", b"weights")
    return found


URI = "memory://beside/run/checkpoints/epoch_1.pt"


def test_a_run_of_open_lm(memory: fsspec.AbstractFileSystem, open_lm_case: Path) -> None:
    """The same answer as for the same files here."""
    for path in open_lm_case.rglob("*"):
        if path.is_file():
            memory.pipe(f"/beside/golden/{path.relative_to(open_lm_case)}", path.read_bytes())
    found = remote_model("memory://beside/golden/checkpoints/epoch_1.pt", SETTINGS)
    assert found == find_model_config(open_lm_case / "checkpoints" / "epoch_1.pt")
    assert found is not None


@pytest.mark.parametrize(
    ("place", "uri"),
    [("run/checkpoints/model.json", URI), ("run/model.json", URI), ("hf/config.json", "memory://beside/hf")],
)
def test_a_json_beside_or_above(memory: fsspec.AbstractFileSystem, place: str, uri: str) -> None:
    memory.pipe("/beside/hf/model.safetensors", b"weights")
    memory.pipe(f"/beside/{place}", json.dumps(MODEL).encode())
    found = remote_model(uri, SETTINGS)
    assert found is not None
    assert found["vocab_size"] == 112


def test_nothing_beside(memory: fsspec.AbstractFileSystem) -> None:
    assert remote_model(URI, SETTINGS) is None
    memory.pipe("/beside/model.json", json.dumps(MODEL).encode())
    assert remote_model(URI, SETTINGS) is None, "two above is another run's"


def test_a_folder_outside_the_roots_is_not_looked_into(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/beside/run/model.json", json.dumps(MODEL).encode())
    narrow = Settings(schemes="memory", roots="memory://beside/run/checkpoints")
    assert remote_model(URI, narrow) is None


def test_messages_name_the_place_elsewhere(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/beside/run/checkpoints/config.json", b"{bad")
    with pytest.raises(InvalidModelConfig, match=r"^memory://beside/run/checkpoints/config\.json is not JSON"):
        remote_model(URI, SETTINGS)


def test_large_files_and_very_many_are_not_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/beside/run/checkpoints/model.json", json.dumps(MODEL).encode() + b" " * 1_000_000)
    assert remote_model(URI, SETTINGS) is None
    memory.pipe("/beside/run/checkpoints/model.json", json.dumps(MODEL).encode())
    for number in range(MAX_MODEL_FILES):
        memory.pipe(f"/beside/run/checkpoints/{number}.json", b"{}")
    assert remote_model(URI, SETTINGS) is None


def test_it_has_an_end(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posted, "METADATA_SECONDS", 0.05)
    monkeypatch.setattr(posted, "_copy_small_files", lambda *_: time.sleep(0.5))
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0\.05 s"):
        remote_model(URI, SETTINGS)


def test_http_has_no_folders() -> None:
    assert remote_model("https://host.example/run/x.pt", Settings(schemes="https")) is None
