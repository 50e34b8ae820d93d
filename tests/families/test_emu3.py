"""Emu3's three names of the model and of the tensors; the arithmetic is in test_against_transformers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file
from tiny_families import describe, write_ours, write_theirs
from torch.nn.functional import cross_entropy

from evalsvc.errors import CheckpointMismatch, InvalidModelConfig, UnsupportedModel
from evalsvc.families.reading import find_model_config
from evalsvc.metrics.token_loss import token_losses
from evalsvc.models import load_model
from evalsvc.sampling.sampler import Prompt, SamplerSpec, generate
from evalsvc.spec.sampling import SamplingParams

AUTO_MAP = {"AutoConfig": "configuration_emu3.Emu3Config", "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM"}
VOCABULARY = {f"<|visual token {number:06}|>": number for number in range(40_000)}
WHOLE = {"model_type": "emu3", "text_config": describe("emu3"), "vocabulary_map": VOCABULARY}
WHOLE |= {"vq_config": {"model_type": "emu3_vqgan"}}
AUTHORS = {**describe("emu3"), "model_type": "Emu3", "auto_map": AUTO_MAP, "rope_theta": 1e6, "rope_scaling": None}


def saved(name: str) -> str:
    return f"text_model.{name}" if name == "lm_head.weight" else f"text_model.model.{name}"


def state_dict(name: str) -> str:
    return name if name == "lm_head.weight" else f"model.text_model.{name}"


def write(folder: Path, fields: dict[str, Any], rename: Callable[[str], str] = str) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = load_file(folder / "model.safetensors")
    others = {"vqmodel.quantize.embedding.weight": torch.zeros(2, 2)} if rename is not str else {}
    save_file({rename(name): value for name, value in tensors.items()} | others, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("fields", "rename"),
    [(AUTHORS, str), (AUTHORS, lambda name: name if name == "lm_head.weight" else f"model.{name}")]
    + [(WHOLE, rename) for rename in (saved, state_dict)],
)
def test_every_form_is_the_same_model(fields: dict[str, Any], rename: Callable[[str], str], tmp_path: Path) -> None:
    """The whole folder's configuration has more than the million bytes that a configuration once could have."""
    expected = write_ours("emu3", tmp_path)
    found = load_model(write(tmp_path, fields, rename))
    assert found.config == expected.config
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_fields_that_a_file_leaves_out_are_those_of_the_published_model(tmp_path: Path) -> None:
    for fields in (
        {"model_type": "emu3"},
        {"model_type": "Emu3", "auto_map": AUTO_MAP},
        {"model_type": "emu3_text_model"},
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        found = find_model_config(tmp_path) or {}
        sizes = [
            found[name] for name in ("vocab_size", "hidden_dim", "n_kv_heads", "ffn_size", "seq_len", "rotary_base")
        ]
        assert sizes == [184_622, 4096, 8, 14_336, 9216, 1e6]
        assert (found["norm_eps"], found["family"]) == (1e-5, "emu3")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_type": "emu3", "text_config": ["hunter2"]}, InvalidModelConfig, "text_config that is no object"),
        (
            {**WHOLE, "text_config": {"hidden_size": 10**9}},
            InvalidModelConfig,
            "hidden_size: input should be less than",
        ),
        ({**WHOLE, "quantization_config": {"bits": 4}}, UnsupportedModel, "the weights are quantised"),
        ({**WHOLE, "text_config": {"quantization_config": {}}, "x": "hunter2"}, None, ""),
        ({**AUTHORS, "quantization_config": {}}, UnsupportedModel, "the weights are quantised"),
        ({**AUTHORS, "num_hidden_layers": 10**6}, InvalidModelConfig, "num_hidden_layers: input should be less"),
        ({**AUTHORS, "hidden_act": "relu2"}, UnsupportedModel, "hidden_act is"),
        ({**AUTHORS, "model_type": "llama"}, UnsupportedModel, "has code of its own"),
        ({**AUTHORS, "model_type": "Emu4"}, UnsupportedModel, "names code of its own"),
    ],
)
def test_hostile_configurations(
    fields: dict[str, Any], error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if error is None:
        assert find_model_config(tmp_path)
        return
    assert message in refusal(error, find_model_config, tmp_path)


@pytest.mark.usefixtures("reference_models", "one_thread")
@pytest.mark.parametrize("path", ["plain", "packed", "graph"])
@torch.inference_mode()
def test_codes_with_row_ends_are_those_of_the_authors_loop(path: Any, tmp_path: Path) -> None:
    """Greedy and guided: the authors force the row end after each row, by the position behind the prompt."""
    theirs = write_theirs("emu3", tmp_path).double()
    first, count, end, scale = 70, 20, 95, 3.0
    prompt, negative, (rows, columns) = [1, 5, 91, 92], [1, 6, 7, 8, 9, 91, 92], (3, 5)
    drawn: list[int] = []
    while len(drawn) < rows * (columns + 1) - 1:
        if (len(drawn) + 1) % (columns + 1) == 0:
            drawn.append(end)
            continue
        sides = [theirs(torch.tensor([side + drawn])).logits[0, -1].double() for side in (prompt, negative)]
        conditional, other = (logits.log_softmax(-1)[first : first + count] for logits in sides)
        drawn.append(first + int((scale * (conditional - other) + other).argmax()))
    params = SamplingParams(temperature=0, guidance_scale=scale)
    for dtype in ("float64", "float32"):
        ours = load_model(tmp_path, dtype=dtype)
        row_end = (end, columns)
        spec = SamplerSpec(range(first, first + count), rows * columns, params, 2, row_end=row_end, path=path)
        [batch] = generate(ours, [Prompt("a", tuple(prompt), unconditional=tuple(negative))], spec)
        assert batch.codes.tolist() == [[row - first for row in drawn if row != end]]
    hidden = ours.hidden(torch.tensor([[*prompt, *drawn]]))[0, :-1]
    targets = torch.tensor([*prompt, *drawn])[1:]
    found = token_losses(hidden, targets, ours.head, [range(first)], range(first, first + count), 8).nll
    logits = theirs(torch.tensor([[*prompt, *drawn]])).logits[0, :-1].double()
    torch.testing.assert_close(found.double(), cross_entropy(logits, targets, reduction="none"), rtol=0, atol=1e-4)


def test_files_of_another_model(tmp_path: Path) -> None:
    """Emu3.5 has the same model_type, and norms of queries and keys."""
    write_ours("emu3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norms = {f"layers.{layer}.self_attn.{part}_norm.weight": torch.ones(8) for layer in (0, 1) for part in "qk"}
    save_file(tensors | norms, tmp_path / "model.safetensors")
    write(tmp_path, AUTHORS)
    assert "4 unexpected: layers.0.self_attn.k_norm" in refusal(CheckpointMismatch, load_model, tmp_path)
    half = {saved(name): value for name, value in tensors.items() if "layers.1" not in name}
    save_file(half | {"layers.1.mlp.up_proj.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert "missing: text_model.model.layers.1." in refusal(CheckpointMismatch, load_model, tmp_path)
