"""Chameleon's four forms of files, and what is refused of them; the arithmetic is in test_against_transformers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_files import Tensors, by_shard, neighbours
from refusals import refusal
from safetensors.torch import load_file, save_file
from tiny_families import SHAPE, write_ours

from evalsvc.errors import CheckpointMismatch, EvalsvcError, InvalidModelConfig, NotACheckpoint, UnsupportedModel
from evalsvc.families.reading import find_model_config, read_model_spec, resolve_config
from evalsvc.models import load_model

HEADS, KEYS = 6, 2
SHARDS = 2
META = {"dim": 48, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": KEYS, "vocab_size": 96, "multiple_of": 4}
META |= {"ffn_dim_multiplier": 0.625, "norm_eps": 1e-5, "qk_normalization": True, "swin_norm": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as transformers saves it, whose norms are equal within each of two shards of the training."""
    write_ours("chameleon-swin", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        if "_norm." in name:
            step = len(tensor) // SHARDS
            tensors[name] = tensor[::step].repeat_interleave(step, 0)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def write_lumina(tensors: Tensors, folder: Path) -> None:
    norms = {name: value[:: len(value) // SHARDS].contiguous() for name, value in tensors.items() if "_norm." in name}
    save_file({**tensors, **norms, "vqmodel.encoder.weight": torch.zeros(2)}, folder / "model.safetensors")


def write_fork(tensors: Tensors, folder: Path) -> None:
    tensors = {f"model.{name}": neighbours(name, value) for name, value in tensors.items()}
    norms = {name: value[0] for name, value in tensors.items() if "_norm." in name}
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, **norms, "model.vqmodel.encoder.weight": torch.zeros(2)}, folder / "pytorch_model.bin")


def write_meta(tensors: Tensors, folder: Path, count: int = 1) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "params.json").write_text(json.dumps({"model": META, "model_parallel_size": count}))
    for number, shard in enumerate(by_shard(tensors, count)):
        torch.save(shard, folder / (f"consolidated.{number:02}.pth" if count > 1 else "consolidated.pth"))


@pytest.mark.parametrize(
    ("form", "shards"), [(write_lumina, 2), (write_fork, 1), (write_meta, 1), (lambda *to: write_meta(*to, 2), 2)]
)
def test_every_form_is_the_same_model(folder: Path, form: Callable[[Tensors, Path], None], shards: int) -> None:
    """Read in the wrong order, a model runs and is wrong at every position."""
    tensors = load_file(folder / "model.safetensors")
    if shards == 1:
        tensors |= {name: value[:1].expand_as(value).clone() for name, value in tensors.items() if "_norm." in name}
        save_file(tensors, folder / "model.safetensors")
    expected = load_model(folder)
    form(tensors, folder)
    found = load_model(folder)
    assert found.config.model_dump(exclude={"seq_len"}) == expected.config.model_dump(exclude={"seq_len"})
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_params_json_is_found_and_can_be_given(folder: Path) -> None:
    write_meta(load_file(folder / "model.safetensors"), folder)
    found = find_model_config(folder)
    assert found == find_model_config(folder / "consolidated.pth") == read_model_spec(str(folder / "params.json"))
    assert found is not None
    sizes = {name: found[name] for name in ("hidden_dim", "ffn_size", "n_kv_heads", "family", "norm_place")}
    assert sizes == {"hidden_dim": 48, "ffn_size": 80, "n_kv_heads": 2, "family": "chameleon", "norm_place": "after"}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE}))
    assert (find_model_config(folder) or {})["family"] == "llama", "a config.json in the folder comes first"
    (folder / "config.json").unlink()
    for other in ({"model": {"dim": 48, "n_layers": 2, "n_heads": 6}}, {"model": "open_lm_1b"}, {"model": None}):
        (folder / "params.json").write_text(json.dumps(other))
        assert find_model_config(folder) is None, "another program's"


def test_fields_that_a_file_leaves_out_are_those_of_the_7b() -> None:
    config = resolve_config({"model_type": "chameleon", "vq_config": {"model_type": "chameleon_vqgan"}}, Path("x"))
    assert (config.hidden_dim, config.vocab_size, config.kv_heads, config.ffn_dim) == (4096, 65_536, 32, 11_008)
    assert (config.norm_eps, config.seq_len, config.weight_tying) == (1e-5, 4096, False)


def edited(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def norms_of(rows: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value[:rows] for name, value in tensors.items() if "_norm." in name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (norms_of(4), r"wrongly shaped: .*layers\.0\.self_attn\.q_norm\.weight \[4, 8\] instead of \[6, 8\]"),
        (norms_of(0), r"q_norm\.weight \[0, 8\] instead of \[6, 8\]"),
        (
            lambda tensors: tensors.update({"layers.1.self_attn.q_norm.bias": torch.zeros(8)}),
            r"q_norm\.bias \[8\] inst",
        ),
        (lambda tensors: tensors.pop("layers.1.self_attn.k_norm.bias"), r"1 missing: layers\.1\.self_attn\.k_norm\.bi"),
        (
            lambda tensors: tensors.update({"tok_embeddings.weight": torch.zeros(96, 48)}),
            "27 missing: layers.0.attention.wq.weight",
        ),
        (lambda tensors: tensors.update({"rope.table": torch.zeros(4)}), r"unexpected: rope\.table"),
    ],
)
def test_files_of_no_known_form_are_refused(folder: Path, change: Callable[[Tensors], object], message: str) -> None:
    edited(folder, change)
    with pytest.raises(CheckpointMismatch, match=message):
        load_model(folder)


def test_parts_that_do_not_fit_together_are_refused_before_they_are_joined(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    write_meta(tensors, folder, 2)
    first = folder / "consolidated.00.pth"
    assert "one of several parts of a model; post the folder" in refusal(NotACheckpoint, load_model, first)
    third = folder / "consolidated.02.pth"
    third.write_bytes(first.read_bytes())
    (folder / "consolidated.03.pth").write_bytes(first.read_bytes())
    assert "the files are 4 shards of a model, which do not divide" in refusal(CheckpointMismatch, load_model, folder)
    third.unlink()
    assert "unexpected: 03." in refusal(CheckpointMismatch, load_model, folder)
    (folder / "consolidated.03.pth").unlink()
    wide = torch.load(first) | {"layers.0.attention.wo.weight": torch.zeros(48, 48)}
    torch.save(wide, first)
    assert "wo.weight [48, 48] instead of [48, 24]" in refusal(CheckpointMismatch, load_model, folder)
    (folder / "consolidated.01.pth").unlink()
    assert "wrongly shaped: 00.tok_embeddings" in refusal(CheckpointMismatch, load_model, folder)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"multiple_of": 0}, InvalidModelConfig, "multiple_of: input should be greater than 0"),
        ({"multiple_of": 2**70}, InvalidModelConfig, "multiple_of: input should be less than"),
        ({"ffn_dim_multiplier": 1e300}, InvalidModelConfig, "ffn_dim_multiplier: input should be less"),
        ({"ffn_dim_multiplier": "hunter2"}, InvalidModelConfig, "ffn_dim_multiplier: input should be a valid number"),
        ({"dim": 2**20, "ffn_dim_multiplier": 64.0}, InvalidModelConfig, "intermediate_size: input should be less"),
        ({"n_layers": 10**9}, InvalidModelConfig, "num_hidden_layers: input should be less than or equal to 512"),
        ({"n_heads": 10**9}, InvalidModelConfig, "num_attention_heads: input should be less"),
        ({"n_kv_heads": 4}, InvalidModelConfig, "n_heads 6 is no multiple of the 4 heads of keys"),
        ({"n_kv_heads": -1}, InvalidModelConfig, "num_key_value_heads: input should be greater than 0"),
        ({"rope_theta": 0.0}, InvalidModelConfig, "rotary_base"),
        ({"qk_normalization": False}, UnsupportedModel, "has no norms of queries and keys"),
    ],
)
def test_hostile_params_json(tmp_path: Path, fields: dict[str, Any], error: type[EvalsvcError], message: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"model": META | fields}))
    found = refusal(error, find_model_config, tmp_path)
    assert message in found
    assert "hunter2" not in found
