"""A run in an object store is posted as one on a disk is: its model is found beside the weights."""

import json
import time
from pathlib import Path

import fsspec
import pytest
from small_models import SHAPE

from evalsvc.checkpoints import posted
from evalsvc.checkpoints.posted import MAX_MODEL_FILES, remote_model
from evalsvc.config import Settings
from evalsvc.errors import InvalidModelConfig, SourceUnreachable
from evalsvc.families.reading import find_model_config

SETTINGS = Settings(schemes="memory")


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
    memory.pipe(f"/beside/{place}", json.dumps(SHAPE).encode())
    found = remote_model(uri, SETTINGS)
    assert found is not None
    assert found["vocab_size"] == SHAPE["vocab_size"]


def test_what_is_not_looked_into(memory: fsspec.AbstractFileSystem) -> None:
    def is_found(settings: Settings = SETTINGS) -> bool:
        return remote_model(URI, settings) is not None

    model = json.dumps(SHAPE).encode()
    assert not is_found()
    memory.pipe("/beside/model.json", model)
    assert not is_found(), "two above is another run's"
    memory.pipe("/beside/run/model.json", model)
    assert is_found()
    assert not is_found(Settings(schemes="memory", roots="memory://beside/run/checkpoints"))
    memory.rm("/beside/run/model.json")
    memory.pipe("/beside/run/checkpoints/model.json", model + b" " * 1_000_000)
    assert not is_found(), "a large file"
    memory.pipe("/beside/run/checkpoints/model.json", model)
    for number in range(MAX_MODEL_FILES):
        memory.pipe(f"/beside/run/checkpoints/{number}.json", b"{}")
    assert not is_found(), "very many files"
    assert remote_model("https://host.example/run/x.pt", Settings(schemes="https")) is None, "http has no folders"


def test_messages_name_the_place_and_it_has_an_end(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/beside/run/checkpoints/config.json", b"{bad")
    with pytest.raises(InvalidModelConfig, match=r"^memory://beside/run/checkpoints/config\.json is not JSON"):
        remote_model(URI, SETTINGS)
    monkeypatch.setattr(posted, "METADATA_SECONDS", 0.05)
    monkeypatch.setattr(posted, "_copy_small_files", lambda *_: time.sleep(0.5))
    with pytest.raises(SourceUnreachable, match=r"did not answer within 0\.05 s"):
        remote_model(URI, SETTINGS)
