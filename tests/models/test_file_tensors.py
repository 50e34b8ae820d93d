"""Tensors of Hugging Face folders as parameters, and files that do not fit."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doc_blocks import find_block
from safetensors.torch import load_file, save_file
from tiny_families import MODELS, describe, write_ours
from torch import Tensor

from evalsvc.errors import CheckpointMismatch
from evalsvc.families.reading import resolve_config
from evalsvc.models import Transformer, load_model
from evalsvc.spec import catalog

Change = Callable[[dict[str, Tensor]], object]


def rewrite(folder: Path, change: Change) -> None:
    """Change the tensors of a folder's file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def equal(first: Transformer, second: Transformer) -> bool:
    others = dict(second.state_dict())
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


def mismatch(folder: Path) -> str:
    with pytest.raises(CheckpointMismatch) as caught:
        load_model(folder)
    return caught.value.message


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_back_what_was_written(name: str, tmp_path: Path) -> None:
    written = write_ours(name, tmp_path)
    model = load_model(tmp_path)
    assert model.config == written.config
    assert equal(written, model)
    assert model.config.family == MODELS[name][0]
    path = tmp_path / "model.safetensors"
    assert equal(written, load_model(path, describe(name))), "the file alone, with its configuration given"


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_fused_parameters_do_not_need_the_file(name: str, tmp_path: Path) -> None:
    written = write_ours(name, tmp_path)
    model = load_model(tmp_path)
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(written, model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", lambda t: t.update({"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
        ("llama-3", lambda t: t.update({"lm_head.weight": t["embed_tokens.weight"].clone()})),
        ("llama-3", lambda t: t.update({"lm_head.weight": t.pop("embed_tokens.weight")})),
        ("gpt_neox", lambda t: t.update({"lm_head.weight": t.pop("embed_out.weight")})),
        ("gpt_neox", lambda t: t.update({"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)})),
        ("gpt_neox", lambda t: t.update({"gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(1)})),
    ],
)
def test_what_other_versions_save(name: str, change: Change, tmp_path: Path) -> None:
    written = write_ours(name, tmp_path)
    rewrite(tmp_path, change)
    assert equal(written, load_model(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", lambda t: t.pop("layers.1.self_attn.k_proj.weight"), "1 missing: layers.1.self_attn.k_proj.weight"),
        (
            "llama",
            lambda t: t.update({"layers.0.self_attn.q_proj.bias": torch.ones(48)}),
            "1 unexpected: layers.0.self",
        ),
        (
            "llama",
            lambda t: t.update({"layers.0.self_attn.k_proj.weight": torch.ones(48, 48)}),
            "wrongly shaped: layers.0.self_attn.k_proj.weight [48, 48] instead of [16, 48]",
        ),
        (
            "llama-3",
            lambda t: t.update({"lm_head.weight": torch.ones_like(t["embed_tokens.weight"])}),
            "saved under two names with different values: embed_tokens.weight and lm_head.weight",
        ),
        ("llama", lambda t: t.update({"norm.weight": torch.ones(48).int()}), "no plain floating-point tensor: norm"),
        ("gpt_neox", lambda t: t.clear() or t.update({"x": torch.ones(1)}), "it is not a gpt_neox model"),
    ],
)
def test_what_does_not_fit(name: str, change: Change, message: str, tmp_path: Path) -> None:
    write_ours(name, tmp_path)
    rewrite(tmp_path, change)
    assert message in mismatch(tmp_path)


def test_a_tied_table_under_the_name_of_the_head_is_measured(tmp_path: Path) -> None:
    write_ours("llama-3", tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("embed_tokens.weight"), "x": torch.ones(1)}))
    assert "1 unexpected: x" in mismatch(tmp_path)
    assert "it is not a llama model" not in mismatch(tmp_path)


def test_a_sparse_twin_of_a_tied_table_is_refused(tmp_path: Path) -> None:
    """Comparing it would fail in torch."""
    write_ours("llama-3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["embed_tokens.weight"]
    (tmp_path / "model.safetensors").unlink()
    torch.save({**tensors, "lm_head.weight": table.to_sparse()}, tmp_path / "pytorch_model.bin")
    assert "saved under two names with different values: embed_tokens.weight and lm_head.weight" in mismatch(tmp_path)


@pytest.mark.parametrize(("rows", "relation"), [(90, "smaller"), (112, "larger")])
def test_a_widened_table_whose_configuration_was_not(rows: int, relation: str, tmp_path: Path) -> None:
    write_ours("llama", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(describe("llama", vocab_size=rows)))
    said = mismatch(tmp_path)
    assert "the file holds hidden_dim 48, n_layers 2, vocab_size 96" in said
    assert f"vocab_size {rows} is {relation} than its 96 rows: correct it" in said
    assert "registered model" not in said


def test_a_table_may_be_of_any_size(tmp_path: Path) -> None:
    write_ours("qwen2", tmp_path, vocab_size=163)
    assert load_model(tmp_path)(torch.tensor([[162]])).shape == (1, 1, 163)


def test_tables_of_images_are_joined_by_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the family that docs/how-to/models.md tells of."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "models.md"
    module = types.ModuleType("split_llama")
    exec(find_block(page, "python", "class SplitLlama"), module.__dict__)
    monkeypatch.setitem(sys.modules, "split_llama", module)
    monkeypatch.setitem(catalog.COMPONENTS["families"], "split_llama", "split_llama:SPLIT_LLAMA")
    written = write_ours("llama", tmp_path)

    def split(tensors: dict[str, Tensor]) -> None:
        for text, images in (("embed_tokens.weight", "image_embed.weight"), ("lm_head.weight", "image_head.weight")):
            tensors[text], tensors[images] = tensors[text][:32].clone(), tensors[text][32:].clone()

    rewrite(tmp_path, split)
    (tmp_path / "config.json").write_text(json.dumps(describe("llama") | {"model_type": "split_llama"}))
    assert equal(written, load_model(tmp_path))


def test_sizes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    """A model of the size that the configuration claims would take terabytes."""
    write_ours("llama", tmp_path)
    huge = {"hidden_size": 2**20, "intermediate_size": 2**24, "num_attention_heads": 2**10, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(describe("llama", **huge)))
    assert resolve_config(None, tmp_path).hidden_dim == 2**20
    assert "instead of [16777216, 1048576]" in mismatch(tmp_path)
