"""Manifests of uploaded folders: what is sent of a folder, and what strangers write into a manifest."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from evalsvc.checkpoints import reference
from evalsvc.errors import InvalidRequest
from evalsvc.files import manifest
from evalsvc.files.manifest import MAX_BYTES, MAX_FILES, files_to_send, read_manifest, write_manifest

DIGEST = "0" * 64


def test_what_is_sent_of_a_folder(tmp_path: Path) -> None:
    """Optimizers are twice as large as the model, and nobody reads them."""
    for name in (
        *("model-00001-of-00002.safetensors", "config.json", "trainer_state.json", "sub/__0_0.distcp", ".metadata"),
        *(
            "optimizer.pt",
            "stats_1.pt",
            "optimizer_0/__0_0.distcp",
            "scheduler.pt",
            "rng_state_0.pth",
            "training_args.bin",
            ".git/a",
        ),
        *("global_step5/mp_rank_00_model_states.pt", "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "1/2/3/4/too_deep.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (1 + len(name)))
    (tmp_path / "empty.json").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "around").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    names = [".metadata", "config.json", "sub/__0_0.distcp", "trainer_state.json", "model-00001-of-00002.safetensors"]
    assert list(files_to_send(tmp_path)) == [*names, "global_step5/mp_rank_00_model_states.pt"], "the smallest first"


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FILES <= reference.MAX_FILES, "what is sent can be posted"
    monkeypatch.setattr(manifest, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="holds more than 3 files, too many to upload"):
        files_to_send(tmp_path)
    with pytest.raises(InvalidRequest, match="the names of 1,000 files are too long"):
        write_manifest({f"{'ü' * 200}{number}": DIGEST for number in range(1000)})


def test_a_manifest_is_read_as_it_was_written() -> None:
    names = {"config.json": DIGEST, "sub/ü .safetensors": "a" * 64, ".metadata": DIGEST}
    written = write_manifest(names)
    assert written.startswith(manifest.BEGIN)
    assert read_manifest(written) == names
    assert written == write_manifest(dict(reversed(names.items())))


NAMES = (
    *("", ".", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", "a\x1b[2J"),
    *("\ud800", "a" * 256, "1/2/3/4/5", "ü" * 128),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is no name of a file in the folder"):
        read_manifest(json.dumps({"files": {name: DIGEST}}).encode())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"files":', "Expecting value"),
        ('{"files": {}}', "is not of the form"),
        ('{"files": []}', "is not of the form"),
        ('{"files": {"a": "0"}, "more": 1}', "is not of the form"),
        ('{"files": {"a": "' + DIGEST + '", "a/b": "' + DIGEST + '"}}', "'a' is a file and the folder of 'a/b'"),
        ('{"files": {"a": "' + "A" * 64 + '"}}', "no SHA-256"),
        ('{"files": {"a": "' + DIGEST + '\\n"}}', "no SHA-256"),
        ('{"files": {"a": 5}}', "no SHA-256"),
        ('{"files":' + "[" * 500_000, "the manifest of the folder is wrong"),
        ('{"files":' + '{"a":' * 150_000, "the manifest of the folder is wrong"),
        ('{"files":' + "9" * 900_000 + "}", "the manifest of the folder is wrong"),
        ('{"files":{' + ",".join(f'"{number}":0' for number in range(100_000)) + "}}", "more than 1,000 files"),
    ],
)
def test_what_strangers_write_is_refused_within_a_second(content: str, words: str) -> None:
    assert len(content) <= MAX_BYTES + 100_000
    begun = time.process_time()
    with pytest.raises(InvalidRequest, match=words):
        read_manifest(content.encode())
    assert time.process_time() - begun < 1
    tracemalloc.start()
    with pytest.raises(InvalidRequest) as caught:
        read_manifest(content.encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(caught.value.message) < 500, peak < 100_000_000) == (True, True)
