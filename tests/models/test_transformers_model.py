"""Models of the package transformers, of many kinds: their numbers, their caches, and what is refused."""

import importlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import sampling_reference as reference
import torch
from safetensors.torch import load_file, save_file

from evalsvc.checkpoints.expression import Average, File
from evalsvc.checkpoints.reference import CheckpointRef, Virtual
from evalsvc.config import Settings
from evalsvc.errors import (
    CheckpointMismatch,
    InvalidData,
    InvalidModelConfig,
    InvalidRequest,
    MissingPackage,
    NotACheckpoint,
    UnsupportedModel,
)
from evalsvc.families.reading import resolve_config
from evalsvc.models import LanguageModel
from evalsvc.models.language_model import StepShape, find_nonfinite
from evalsvc.sampling import Prompt, SamplerSpec, SamplingParams, generate
from evalsvc.worker.context import ShardContext

pytestmark = pytest.mark.usefixtures("reference_models")

ROWS = 80
NAMED: dict[str, Any] = {"vocab_size": ROWS, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
WINDOW = {"head_dim": 8, "sliding_window": 5}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # model_type: the cache that is chosen, and the shape
    "bloom": ("dynamic", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "cohere": ("static", {**LLAMA, "logit_scale": 0.25}),
    "gemma2": ("static", {**LLAMA, **WINDOW}),
    "gemma3_text": ("static", {**LLAMA, **WINDOW}),
    "gpt2": ("static", GPT2),
    "gpt_neo": ("dynamic", {**NEO, "attention_types": [[["global", "local"], 1]], "window_size": 5}),
    "gptj": ("static", {**GPT2, "rotary_dim": 4}),
    "granite": ("static", {**LLAMA, "logits_scaling": 4.0}),
    "mistral": ("static", {**LLAMA, "sliding_window": 5}),
    "mixtral": ("static", {**LLAMA, "num_local_experts": 4}),
    "mpt": ("dynamic", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "opt": ("static", {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("static", {**LLAMA, "num_key_value_heads": 4}),
}
LONG = {"rope_theta": 1e4, "rope_type": "longrope", "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def write(kind: str, folder: Path, fields: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(kind, **NAMED, **fields))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.requires_grad_(False).eval().save_pretrained(folder)
    return model


def load(checkpoint: Path | CheckpointRef, rotary: str = "auto") -> LanguageModel:
    if isinstance(checkpoint, Path):
        checkpoint = CheckpointRef(str(checkpoint), model={"family": "transformers"}, label="step 1")
    context = ShardContext(checkpoint, Settings(devices="cpu", threads=1), lambda done: None)
    return context.model(dtype="float32", rotary_inv_freq_dtype=rotary)


def rewrite(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    write("gpt2", tmp_path / "gpt2", GPT2)
    return tmp_path / "gpt2"


@pytest.mark.parametrize("kind", MODELS)
def test_numbers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    cache, fields = MODELS[kind]
    theirs = write(kind, tmp_path / "model", fields)
    ours = load(tmp_path / "model")
    assert ours.only_path == cache
    ids = torch.arange(22).view(2, 11) * 3 % ROWS
    expected = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours.logits(ids), expected)
    with torch.inference_mode():
        hidden = ours.hidden(ids)
        for rows in (slice(3, 9), torch.tensor([70, 3, 5])):
            torch.testing.assert_close(ours.head(hidden[:, -1], rows), expected[:, -1, rows])
        prompts = [tuple(ids[0, :4].tolist()), tuple(ids[1, :7].tolist())]
        last, filled = ours.read_prompts(prompts, 11)
        torch.testing.assert_close(ours.head(last), torch.stack([expected[0, 3], expected[1, 6]]))
        for step in range(4):
            mask = torch.arange(8 + step) >= torch.tensor([[3], [0]])
            positions = torch.tensor([[4 + step], [7 + step]])
            new = torch.stack([ids[0, 4 + step], ids[1, 7 + step]])[:, None]
            last = ours.hidden(new, mask=mask, positions=positions, cache=filled)[:, -1]
            torch.testing.assert_close(ours.head(last), torch.stack([expected[0, 4 + step], expected[1, 7 + step]]))


def test_rows_leave_a_cache(gpt2: Path) -> None:
    ours = load(gpt2)
    prompts = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    with torch.inference_mode():
        _, cache = ours.read_prompts(prompts, 8)
        cache.keep(torch.tensor([2, 0]))
        mask, positions = torch.ones(2, 4, dtype=torch.bool), torch.full((2, 1), 3)
        last = ours.hidden(torch.tensor([[10], [11]]), mask=mask, positions=positions, cache=cache)[:, -1]
        whole = ours.hidden(torch.tensor([[7, 8, 9, 10], [1, 2, 3, 11]]))[:, -1]
    torch.testing.assert_close(last, whole)


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_row_ends_and_unconditional_prompts_of_several_lengths(kind: str, tmp_path: Path) -> None:
    """Each cache is filled once for both sides of guidance, and has a slot for every row end."""
    write(kind, tmp_path / kind, MODELS[kind][1])
    ours = load(tmp_path / kind)
    prompts = [
        Prompt(str(row), tuple(range(1 + row, 4 + 2 * row)), unconditional=(1, *[2] * (2 * row), 3)) for row in range(3)
    ]
    params = SamplingParams(seed=3, guidance_scale=2.0)
    spec = SamplerSpec(range(9, ours.config.vocab_size), 5, params, 3, bucket=8, row_end=(4, 2))
    [samples] = generate(ours, prompts, spec)
    model: Any = ours.logits
    assert samples.codes.tolist() == [reference.codes_of(model, spec, prompts[index]) for index in samples.indices]


def test_the_network_is_not_reached(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the configuration names a kernel of the hub."""
    rewrite(gpt2, _attn_implementation="kernels-community/flash-attn", use_kernels=True)
    calls: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *found: calls.append(found))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *found, **more: calls.append(found))
    load(gpt2)
    assert calls == []


def test_buffers_of_older_releases_are_passed_over(gpt2: Path) -> None:
    ids = torch.arange(6)[None]
    expected = load(gpt2).logits(ids)
    tensors = load_file(gpt2 / "model.safetensors")
    older = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.1.attn.bias": torch.ones(9).bool()}
    save_file({**tensors, **older}, gpt2 / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(gpt2).logits(ids), expected)
    for name, words in (("transformer.wte.weight", "no plain floating-point"), ("transformer.other", "unexpected")):
        value = torch.ones(80, 32, dtype=torch.int8) if name in tensors else torch.ones(3)
        filler = {"transformer.h.0.attn.masked_bias": torch.ones(80 * 32)}
        save_file({**tensors, **filler, name: value}, gpt2 / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointMismatch, match=words):
            load(gpt2)


def test_what_is_refused_before_the_configuration(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol would say that the frequencies are rounded; a pickle is not read."""
    assert load(gpt2, rotary="float32").output_table.shape[0] == resolve_config("transformers", gpt2).vocab_size == ROWS
    with pytest.raises(InvalidRequest, match="leave rotary_inv_freq_dtype out"):
        load(gpt2, rotary="bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("evalsvc.models.transformers_loading"), "OLDEST", 99)
        with pytest.raises(MissingPackage, match=r"needs transformers 99 or later, and [0-9.]+ is installed; run: pip"):
            load(gpt2)
    torch.save(load_file(gpt2 / "model.safetensors"), gpt2 / "pytorch_model.bin")
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(NotACheckpoint, match="save the model as safetensors"):
        load(gpt2)


@pytest.mark.parametrize(
    ("kind", "fields", "limit"),
    [
        ("gpt2", GPT2, 64),
        ("llama", {**LLAMA, "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}}, 64),
        ("phi3", {**LLAMA, "rope_parameters": LONG, "original_max_position_embeddings": 32}, 32),
    ],
)
def test_positions_end_with_a_table_or_with_frequencies_that_change_with_a_batch(
    kind: str, fields: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    """A short row next to a long one would be turned by the frequencies of the long one."""
    write(kind, tmp_path / "model", fields)
    ours = load(tmp_path / "model")
    ours.require_positions(limit - 1)
    with pytest.raises(InvalidData, match=f"position {limit} is beyond the {limit} positions"):
        ours.hidden(torch.zeros(1, limit + 1, dtype=torch.int64))


def test_what_only_the_transformer_has_is_refused_and_a_part_with_nan_has_a_name(gpt2: Path) -> None:
    ours: Any = load(gpt2)
    ours.module.transformer.h[1].ln_1.weight[:] = float("nan")
    assert find_nonfinite(ours, torch.arange(4)[None]) == "transformer.h.1.ln_1"
    for changes, words in (
        ({"weights": "int8"}, "weights: int8 needs a model that evalsvc computes"),
        ({"cache_dtype": torch.bfloat16}, "leave cache_dtype out"),
        ({"path": "packed"}, "has only 'static'"),
    ):
        fields: dict[str, Any] = {"rows": 2, "image_ids": range(9), "capacity": 8, "path": "static"}
        with pytest.raises(InvalidRequest, match=words):
            ours.decoding(StepShape(**{**fields, **changes}))
    parent = CheckpointRef(str(gpt2), model={"family": "transformers"}, label="a")
    average = Virtual(Average((File("a"), File("b"))), {"a": parent, "b": parent})
    virtual = CheckpointRef("virtual", virtual=average, label="step 1")
    with pytest.raises(UnsupportedModel, match="cannot be combined"):
        load(virtual)


def test_sizes_beyond_the_file_are_refused_before_memory_is_taken(gpt2: Path) -> None:
    """Some classes count the layers of their decoder in a field of their own, whatever `num_hidden_layers` is."""
    written = (gpt2 / "config.json").read_text()
    marian = {"model_type": "marian", "num_hidden_layers": 1, "decoder_layers": 512, "d_model": 32, "pad_token_id": 0}
    for changes, error, words in (
        ({"vocab_size": 2**26}, CheckpointMismatch, "describes a model of"),
        ({"n_layer": 3}, CheckpointMismatch, "describes a model of"),
        ({"n_layer": 512}, CheckpointMismatch, "describes a model of 512 layers"),
        ({"n_positions": 32}, CheckpointMismatch, r"wrongly shaped: transformer\.wpe\.weight \[64, 32\] instead"),
        ({"n_head": 5}, InvalidModelConfig, "refuses the configuration"),
        ({"model_type": "gpt_nothing"}, InvalidModelConfig, "for the model_type 'gpt_nothing'"),
        ({"model_type": "vit"}, UnsupportedModel, "no causal language model of the model_type 'vit'"),
        ({**marian, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}, CheckpointMismatch, "describes a model of"),
    ):
        (gpt2 / "config.json").write_text(written)
        rewrite(gpt2, **changes)
        with pytest.raises(error, match=words):
            load(gpt2)


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_a_model_whose_numbers_depend_on_padding_is_refused(kind: str, tmp_path: Path) -> None:
    """A BERT attends to later tokens, and a state-space model reads padding."""
    mamba = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    write(kind, tmp_path / "model", mamba if kind == "mamba" else {**LLAMA, "num_key_value_heads": 4})
    with pytest.raises(UnsupportedModel, match="computes other numbers for padded prompts with a cache"):
        load(tmp_path / "model")
