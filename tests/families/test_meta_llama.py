"""Llama in Meta's files, `consolidated.NN.pth` with `params.json`; Chameleon's are in test_chameleon.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_files import COLUMNS, by_shard, llama_logits
from refusals import refusal
from safetensors.torch import load_file
from tiny_families import describe, write_ours

from evalsvc.errors import CheckpointMismatch, EvalsvcError, InvalidModelConfig, NotACheckpoint, UnsupportedModel
from evalsvc.families.reading import find_model_config, read_model_spec, resolve_config
from evalsvc.models import load_model

PARAMS: dict[str, Any] = {"dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 96, "multiple_of": 4}
PARAMS |= {"ffn_dim_multiplier": 0.625, "norm_eps": 1e-6, "rope_theta": 500.0}
LLAMA_2 = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5, "vocab_size": -1}
LLAMA_3 = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128_256, "multiple_of": 1024}
SCALING = {"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
LLAMA_3 |= {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500_000.0}


def write(folder: Path, count: int, columns: tuple[str, ...] = COLUMNS, **params: Any) -> None:
    """Write the small Llama of `tiny_families` as Meta would."""
    folder.mkdir()
    write_ours("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    for number, shard in enumerate(by_shard(tensors, count, columns)):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[1:]])  # since Llama 3, the table is divided by rows
@pytest.mark.parametrize("count", [1, 2])
def test_one_file_and_several_are_the_model_of_transformers(
    tmp_path: Path, count: int, columns: tuple[str, ...]
) -> None:
    write_ours("llama", tmp_path / "theirs")
    write(tmp_path / "meta", count, columns)
    expected, found = load_model(tmp_path / "theirs"), load_model(tmp_path / "meta")
    assert found.config.model_dump(exclude={"seq_len"}) == expected.config.model_dump(exclude={"seq_len"})
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("scaled", [False, True])
@torch.inference_mode()
def test_the_logits_are_those_of_meta_s_arithmetic(tmp_path: Path, scaled: bool) -> None:
    """Read in transformers' order, a model runs and is wrong at every position."""
    params = {"rope_theta": 500_000.0, "use_scaled_rope": scaled}
    write(tmp_path / "meta", 1, **params)
    config = resolve_config({**describe("llama"), **HUGGING_FACE[scaled]}, tmp_path / "meta")
    file, ids = tmp_path / "meta" / "consolidated.00.pth", torch.arange(0, 90, 2)
    expected = llama_logits(torch.load(file), PARAMS | params, ids)
    found = load_model(tmp_path / "meta", config, dtype="float64")(ids[None])[0]
    assert float((found - expected).abs().max()) < 1e-5
    assert expected.std() > 0.5
    if not scaled:
        assert torch.equal(load_model(tmp_path / "meta", dtype="float64")(ids[None])[0], found)


HUGGING_FACE: dict[bool, dict[str, Any]] = {
    False: {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    True: {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}},
}
HUGGING_FACE[True]["rope_parameters"] |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({**LLAMA_2, "norm_eps": 1e-6}, {"vocab_size": 32_000, "ffn_size": 11_008, "seq_len": 2048}),
        ({**LLAMA_2, "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3, "multiple_of": 4096},
         {"vocab_size": 32_000, "ffn_size": 28_672, "n_kv_heads": 8}),
        (LLAMA_3, {"vocab_size": 128_256, "ffn_size": 14_336, "seq_len": 8192, "rotary_base": 500_000.0}),
        ({**LLAMA_3, "use_scaled_rope": True}, {"seq_len": 131_072, "rotary_scaling": SCALING}),
    ],
)  # fmt: skip
def test_the_sizes_of_meta_s_models(tmp_path: Path, params: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params))
    found = find_model_config(tmp_path)
    assert (
        found == find_model_config(tmp_path / "consolidated.00.pth") == read_model_spec(str(tmp_path / "params.json"))
    )
    assert found is not None
    assert {name: found[name] for name in ("family", *expected)} == {"family": "llama", **expected}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"moe_args": {"num_experts": 16}}, InvalidModelConfig, "not a params.json of Llama 1 to 3: moe_args: extra"),
        ({"quantization_args": {"scheme": "int4"}}, InvalidModelConfig, "quantization_args: extra inputs are not"),
        ({"use_scaled_rope": True}, UnsupportedModel, "is of Llama 3.2, whose frequencies Meta's program scales by 8"),
        ({"vocab_size": -2}, InvalidModelConfig, "vocab_size: input should be greater than 0"),
        ({"vocab_size": 2**40}, InvalidModelConfig, "vocab_size: input should be less than"),
        ({"n_layers": 10**9}, InvalidModelConfig, "num_hidden_layers: input should be less than or equal to 512"),
        ({"multiple_of": 0}, InvalidModelConfig, "multiple_of: input should be greater than 0"),
        ({"rope_theta": float("inf")}, InvalidModelConfig, "rope_theta: input should be a finite number"),
        ({"n_heads": "hunter2"}, InvalidModelConfig, "n_heads: input should be a valid integer"),
    ],
)
def test_hostile_params_json(tmp_path: Path, fields: dict[str, Any], error: type[EvalsvcError], message: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | fields))
    found = refusal(error, find_model_config, tmp_path)
    assert message in found
    assert "hunter2" not in found


def test_parts_that_do_not_fit_are_refused_before_they_are_joined(tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    write(folder, 2)
    first, second = folder / "consolidated.00.pth", folder / "consolidated.01.pth"
    assert "one of several parts of a model; post the folder" in refusal(NotACheckpoint, load_model, first)
    (folder / "params.json").write_text(json.dumps(PARAMS | {"vocab_size": -1}))
    assert "vocab_size 32000 is larger than its 96 rows" in refusal(CheckpointMismatch, load_model, folder)
    (folder / "params.json").write_text(json.dumps(PARAMS))
    second.unlink()
    assert "wrongly shaped: 00.tok_embeddings.weight" in refusal(CheckpointMismatch, load_model, folder)
    torch.save({"tok_embeddings.weight": torch.zeros(7, 5)}, second)
    assert "wrongly shaped" in refusal(CheckpointMismatch, load_model, folder)
