"""`evalsvc submit --upload`: what is sent, what is said meanwhile, and what is refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_in_process import app_on_port
from console import Command

from evalsvc.cli.weights import uploaded_model

RUN = Path(__file__).parents[2] / "evalsvc" / "miniature" / "runs" / "pretrained"
FILE = RUN / "checkpoints" / "epoch_1.pt"


@pytest.fixture(scope="module")
def taking_uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with app_on_port(tmp_path_factory.mktemp("taking"), upload_bytes=10_000_000) as (url, state):
        yield url, state


@pytest.fixture
def taking(taking_uploads: tuple[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a service that takes uploads, and that the client finds."""
    url, state = taking_uploads
    monkeypatch.setenv("EVALSVC_URL", url)
    return state


def test_a_file_is_sent_with_its_model(command: Command, taking: Any) -> None:
    """The files next to a checkpoint say what its model is, and are not sent: their content is."""
    result = command("submit", "sent", "25", str(FILE), "--upload", "--suite", "loss")
    assert result.code == 0
    assert re.fullmatch(r"after \d s: reading 1 of 1 MB; sending 1 of 1 MB\n", result.err)
    assert result.out == "checkpoint 1: sent step 25 raw\nevaluation 1: loss queued\n"
    [spooled] = (taking.settings.data_path / "spool" / "1").iterdir()
    assert spooled.read_bytes() == FILE.read_bytes()
    assert command("submit", "sent", "25", str(FILE), "--upload", "--suite", "loss").out == result.out


def test_a_model_that_transformers_computes_is_sent_with_its_configuration(tmp_path: Path) -> None:
    """A worker finds no config.json next to an uploaded file."""
    fields = '{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 80}'
    (tmp_path / "config.json").write_text(fields)
    (tmp_path / "model.safetensors").touch()
    description = uploaded_model(str(tmp_path / "model.safetensors"), "transformers")
    assert description is not None
    assert (description["family"], description["vocab_size"]) == ("transformers", 80)
    assert "transformers_config" in description


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket/a.pt", "--upload sends a file of this machine, and s3://bucket/a.pt is no such file"),
        ("avg(a@1, a@2)", "leave --upload out"),
        (str(RUN), "is a folder, and one file can be uploaded"),
        ("nowhere.pt", "--model"),
    ],
)
def test_what_cannot_be_sent(command: Command, taking: Any, uri: str, words: str) -> None:
    result = command("submit", "sent", "25", uri, "--upload")
    assert (result.code, result.out) == (2, "")
    assert words in result.err
