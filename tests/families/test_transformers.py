"""Configurations of models that no family reads, for the package transformers; none of these needs the package."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

from evalsvc.errors import InvalidModelConfig, UnsupportedModel
from evalsvc.families.reading import computed_by, family_of, find_model_config, read_model_spec, resolve_config

GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"vocab_size": 80, "resid_pdrop": 0.1}


def write(folder: Path, fields: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_model_type_without_a_family(tmp_path: Path) -> None:
    """The API stores what it finds, and a worker reads it again."""
    found = find_model_config(write(tmp_path, GPT2)) or {}
    for model in (None, found, "transformers", {"family": "transformers"}, str(tmp_path / "config.json"), GPT2):
        config = resolve_config(model, tmp_path)
        assert (config.family, config.hidden_dim, config.n_layers, config.n_heads) == ("transformers", 32, 2, 4)
        assert (config.vocab_size, config.seq_len) == (80, 64)
        assert json.loads(config.transformers_config or "") == GPT2
    assert family_of(config).runs == "transformers"


def test_sizes_of_any_model(tmp_path: Path) -> None:
    """A family may be run by transformers too. Gemma 3n gives the width of each layer's feed-forward part."""
    with pytest.raises(InvalidModelConfig, match=r"config\.json is not a file"):
        resolve_config("transformers", tmp_path)
    large = {"vocab_size": 262_144, "n_positions": 10_485_760, "rope_theta": 10_000_000, "eos_token_id": [262_143]}
    assert resolve_config("transformers", write(tmp_path, {**GPT2, **large})).seq_len == 10_485_760
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    assert resolve_config("transformers", write(tmp_path, llama)).family == "transformers"
    assert read_model_spec("transformers") == {"family": "transformers"}
    config = resolve_config("transformers", write(tmp_path, {**GPT2, "intermediate_size": [48, 96]}))
    assert config.ffn_size == 96


def test_what_is_kept_is_kept_with_the_version_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "5.1.0")
    assert computed_by(resolve_config("transformers", write(tmp_path, GPT2))) == {"transformers": "5.1.0"}
    assert computed_by(resolve_config("open_lm_11m", tmp_path)) == {}


def test_fields_that_say_how_to_run_a_model_are_dropped(tmp_path: Path) -> None:
    """They name files, other repositories' kernels, and ways of computing."""
    ways = {
        "_attn_implementation": "some-one/kernel",
        "_name_or_path": "some-one/model",
        "attn_implementation": "some-one/kernel",
        "transformers_weights": "../other.safetensors",
        "fusion_config": {"patch_embeddings": True},
        "id2label": {"0": "LABEL_0"},
        "num_labels": 2**31 - 1,
        "torch_dtype": "float16",
        "use_kernels": True,
    }
    config = resolve_config("transformers", write(tmp_path, {**GPT2, **ways}))
    assert json.loads(config.transformers_config or "") == GPT2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "hunter2"}}, "code of its own"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"text_config": {"model_type": "llama"}}, "several parts"),
        ({"model_type": None}, "no model_type"),
        ({"n_layer": 513}, "n_layer: input should be less than or equal to 512"),
        ({"n_layer": "hunter2"}, "n_layer: input should be a valid integer"),
        ({"n_layer": None}, "sets none of num_hidden_layers"),
        ({"n_embd": -1}, "n_embd: input should be greater"),
        ({"vocab_size": 2.5}, "vocab_size"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {**GPT2, **changes})
    assert words in refusal((InvalidModelConfig, UnsupportedModel), resolve_config, "transformers", folder)


def test_posted_fields_are_checked_again(tmp_path: Path) -> None:
    """Whoever posts a checkpoint may write anything where the service would have put a checked file."""
    config = resolve_config("transformers", write(tmp_path, GPT2)).model_dump(mode="json")
    for hostile in ({**GPT2, "auto_map": {"AutoModel": "a.B"}}, {**GPT2, "vocab_size": 2**40}):
        fields = {**config, "transformers_config": json.dumps(hostile)}
        assert refusal((UnsupportedModel, InvalidModelConfig), read_model_spec, fields)
    for broken in (None, "{", "[]", "[" * 100_000, 7):
        fields = {**config, "transformers_config": broken}
        assert "transformers_config" in refusal(InvalidModelConfig, read_model_spec, fields)
    smaller = {**GPT2, "n_embd": 16}
    assert resolve_config({**config, "transformers_config": json.dumps(smaller)}, tmp_path).hidden_dim == 16


def test_a_configuration_that_is_too_long_to_keep(tmp_path: Path) -> None:
    """The service stores it with every checkpoint, and a file may have ten times as much."""
    write(tmp_path, {**GPT2, "vocabulary_map": {f"<token {number}>": number for number in range(50_000)}})
    assert "at most 1,000,000 are kept" in refusal(InvalidModelConfig, find_model_config, tmp_path)
    assert "at most 1,000,000 are kept" in refusal(InvalidModelConfig, resolve_config, "transformers", tmp_path)
