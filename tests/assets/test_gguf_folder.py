import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_gguf import HEADS, SHARED, TOKENS, WIDTH, weights, write_tiny_gguf

from evalsvc.checkpoints.tensors import tensor_digest
from evalsvc.data.tokenizer import read_tokenizer
from evalsvc.spec.layout import parse_layout

pytest.importorskip("gguf", reason="needs the package gguf, of the extra real-model")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def folder(file: Path) -> Path:
    from evalsvc.assets.gguf_folder import write_folder

    folder = file.parent / "folder"
    folder.mkdir()
    write_folder(file, folder, lambda done, total: None)
    return folder


def test_the_configuration_is_a_llamas(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected


def test_the_weights_are_the_quantised_ones_in_hugging_faces_order(folder: Path) -> None:
    """In another order of the rows of queries and keys, the positions would turn the wrong pairs."""
    written, exact = load_file(folder / "model.safetensors"), weights()
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in exact.items()
    }
    for name, tensor in written.items():
        assert tensor.dtype == torch.float32
        # Half a step: of 127 to each side for Q8_0, of 15 between the least and the greatest of a block for Q4_1.
        step = 0 if tensor.dim() == 1 else exact[name].abs().max() / 127 if "embed" in name else exact[name].max() / 7
        assert (tensor - exact[name]).abs().max() <= 0.55 * step, name


def test_the_digest_and_the_progress_are_those_of_the_weights(file: Path, folder: Path, tmp_path: Path) -> None:
    from evalsvc.assets.gguf_folder import write_folder

    seen: list[tuple[int, int | None]] = []
    digest = write_folder(file, tmp_path, lambda done, total: seen.append((done, total)))
    written = load_file(folder / "model.safetensors")
    assert digest == tensor_digest(written)
    size = sum(tensor.nbytes for tensor in written.values())
    assert (seen[-1], len(seen)) == ((size, size), len(written))
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), "the same file gives the same folder"


def test_the_layout_has_every_row_and_the_folders_tokenizer(folder: Path) -> None:
    layout = parse_layout(str(folder / "layout.json")).resolve(len(TOKENS))
    assert layout.text.tokenizer == str(folder / "tokenizer.json")
    assert (layout.text_ids, layout.text.bos, layout.template) == (range(len(TOKENS)), "none", ("TEXT",))
    read_tokenizer(layout.text.tokenizer).require_fits(layout.text)
