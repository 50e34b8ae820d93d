"""What a config.json says, in every family: switches, and what is refused before any weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_families import SHAPE

from evalsvc.errors import CheckpointMismatch, InvalidModelConfig, UnknownName, UnsupportedModel
from evalsvc.families.reading import family_of, find_model_config, read_model_spec, require_one_model, resolve_config
from evalsvc.spec import catalog
from evalsvc.spec.model_config import ModelConfig

KINDS = ("chameleon", "gemma", "gpt_neox", "llama", "mistral", "olmo2", "qwen2", "qwen3")


def shape_of(kind: str) -> dict[str, Any]:
    return {key: value for key, value in SHAPE.items() if (kind, key) != ("gpt_neox", "num_key_value_heads")}


def read(kind: str, **fields: Any) -> ModelConfig:
    return resolve_config({**shape_of(kind), "model_type": kind, **fields}, Path("nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_is_found_in_its_folder_and_can_be_given_later(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**shape_of(kind), "model_type": kind}))
    found = find_model_config(tmp_path) or {}
    assert found["family"] == kind
    (tmp_path / "params.txt").write_text("qk_norm: False\nmodel_norm: default_layer_norm\nmodel: open_lm_1b\n")
    for model in (None, json.loads(json.dumps(found)), str(tmp_path / "config.json")):
        assert resolve_config(model, tmp_path) == read(kind)
    assert resolve_config(None, tmp_path / "model.safetensors") == read(kind)
    assert read_model_spec(found) == found
    config = read(kind)
    names = [name for source in family_of(config).sources(config).values() for name in source.names]
    assert len(names) == len(set(names)), "a parameter that is missing has one name"
    assert not [name for name in names if "in_proj" in name or "w12" in name]


def test_configurations_of_open_lm_are_written_as_before() -> None:
    """Stored configurations, and digests of them, must not change with every new switch, and no key is a switch."""
    spec = read_model_spec("open_lm_1b") | {"n_kv_heads": 2, "rotary_base": 5.0, "parallel_residual": True}
    assert resolve_config(spec, Path("nowhere")) == resolve_config("open_lm_1b", Path("nowhere"))
    config = resolve_config("open_lm_1b", Path("nowhere"))
    assert len(config.model_dump(mode="json")) == 13
    assert set(config.model_dump(exclude={"precision"})) == set(config.model_dump()) - {"precision"}
    others = {"Emu3", "emu3", "emu3_text_model", "janus", "multi_modality", "open_lm", "transformers"}
    assert {*KINDS} | others == set(catalog.COMPONENTS["families"])


def test_models_that_differ_in_a_switch_are_not_combined() -> None:
    """A switch that is as in open_lm is left out of a configuration, and must count all the same."""
    models = {"a": read("llama").model_dump(), "b": read("llama", rope_theta=500_000.0).model_dump()}
    with pytest.raises(CheckpointMismatch, match=r"rotary_base 10000\.0 and 500000\.0"):
        require_one_model(models)
    require_one_model({"a": models["a"], "b": dict(models["a"])})
    # A configuration for transformers may have a million characters, of which a message shows the beginning.
    long = {name: {"family": "transformers", "transformers_config": letter * 9_000} for name, letter in ("ax", "by")}
    with pytest.raises(CheckpointMismatch, match=r"transformers_config 'x{199} … \(9,002 characters\) and 'y{199} "):
        require_one_model(long)
    # Refused when an expression is posted, and not by a worker later.
    with pytest.raises(UnsupportedModel, match="a is a model of the package transformers, which cannot be combined"):
        require_one_model({"a": {"family": "transformers"}, "b": {"family": "transformers"}})


def test_both_spellings_of_the_rotary_positions() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    older = read("llama", rope_theta=500_000.0, rope_scaling={"type": "llama3", **scaling})
    newer = read("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling})
    assert older == newer
    assert older.rotary_base == 500_000.0
    assert older.rotary_scaling is not None
    assert older.rotary_scaling.original_length == 32
    assert read("llama", rope_theta=100_000).rotary_base == 100_000.0
    assert read("llama").rotary_base == 10_000.0
    for share, dims in ((0.25, 2), (0.5, 4), (1.0, None)):
        older = read("gpt_neox", rotary_pct=share, rotary_emb_base=500)
        newer = read("gpt_neox", rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": share})
        assert older == newer
        assert (older.rotary_dims, older.rotary_base) == (dims, 500.0)


def test_a_window_shortens_the_sequences() -> None:
    assert read("mistral").attention_window == 4096, "transformers' default"
    assert read("mistral").seq_len == 128
    short = read("mistral", sliding_window=100)
    assert (short.attention_window, short.seq_len) == (100, 100)
    assert read("mistral", sliding_window=None).attention_window is None


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_window_of_qwen_counts_where_a_layer_uses_it(kind: str) -> None:
    for fields, window in (
        ({}, None),
        ({"use_sliding_window": False}, None),
        ({"max_window_layers": 1}, 64),
        ({"max_window_layers": 2}, None),
        ({"layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": ["sliding_attention"] * 2}, 64),
    ):
        slides = {"use_sliding_window": True, "sliding_window": 64} if fields else {}
        assert read(kind, **slides | fields).attention_window == window


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"hidden_size": 10**12}, InvalidModelConfig, f"hidden_size is '{10**12}': input should be less than"),
        ({"num_hidden_layers": 513}, InvalidModelConfig, "num_hidden_layers is '513'"),
        ({"vocab_size": 0}, InvalidModelConfig, "vocab_size is '0'"),
        ({"num_attention_heads": "6"}, InvalidModelConfig, "num_attention_heads is '6'"),
        ({"hidden_act": "relu2"}, UnsupportedModel, "hidden_act is 'relu2'; evalsvc computes silu"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModel, "are quantised .*; save them in bfloat16"),
        ({"auto_map": {"AutoModelForCausalLM": "a.B"}}, UnsupportedModel, "code of its own .* never runs"),
        ({"layer_types": ["linear_attention"]}, UnsupportedModel, "layer_types has 'linear_attention'"),
    ],
)
def test_what_every_family_refuses(kind: str, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(kind, **fields)


LINEAR = {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("kind", "fields", "error", "message"),
    [
        *(
            ("llama", {"rope_scaling": LINEAR | scaling}, error, message)
            for scaling, error, message in (
                ({"type": "yarn"}, UnsupportedModel, "rope_type 'yarn'; evalsvc computes def"),
                ({"rope_type": "dynamic"}, UnsupportedModel, "rope_type 'dynamic'"),
                ({"factor": None}, InvalidModelConfig, "factor of the rotary frequencies is missing"),
                ({"factor": "8"}, InvalidModelConfig, "factor of the rotary"),
                ({"factor": 10**40}, InvalidModelConfig, "not finite or too large"),
                ({"factor": -1.0}, InvalidModelConfig, "rotary_scaling"),
            )
        ),
        ("llama", {"rope_parameters": {"full": {"rope_theta": 1e4}}}, UnsupportedModel, "differ by kind of layer"),
        ("llama", {"partial_rotary_factor": 0.5}, UnsupportedModel, "rotates a part of each head only for gpt_neox"),
        ("llama", {"rope_theta": 0.5}, InvalidModelConfig, "rotary_base"),
        (
            "llama",
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5.0}},
            InvalidModelConfig,
            "s differ; keep",
        ),
        ("llama", {"num_key_value_heads": 4}, InvalidModelConfig, "n_heads 6 is no multiple of the 4 heads of keys"),
        ("llama", {"head_dim": 7}, InvalidModelConfig, "an even width"),
        ("gemma", {"use_bidirectional_attention": True}, UnsupportedModel, "causal attention only"),
        ("gpt_neox", {"num_key_value_heads": 2}, UnsupportedModel, "gpt_neox has no grouped heads"),
        ("gpt_neox", {"rotary_pct": 2.0}, InvalidModelConfig, "rotary_pct is '2.0'"),
    ],
)
def test_what_one_family_refuses(kind: str, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(kind, **fields)


def test_a_field_that_is_missing_and_a_family_that_is_unknown() -> None:
    incomplete = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"model_type": "llama"}
    with pytest.raises(InvalidModelConfig, match="is not a llama configuration: intermediate_size is missing"):
        read_model_spec(incomplete)
    with pytest.raises(UnknownName, match="no family is named 'lama'; did you mean 'llama'"):
        read_model_spec(read("llama").model_dump(mode="json") | {"family": "lama"})
