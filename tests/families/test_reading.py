"""Which file says what about a model, and who wins."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import small_models
import tiny_families
from refusals import refusal

from evalsvc.errors import InvalidModelConfig, UnknownName, UnsupportedModel
from evalsvc.families.open_lm import registered_models
from evalsvc.families.reading import find_model_config, read_model_spec, resolve_config
from evalsvc.spec.model_config import ModelConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
SHAPE: dict[str, Any] = small_models.SHAPE | {"n_heads": 4, "seq_len": 64, "vocab_size": 80}
LLAMA = tiny_families.SHAPE | {"model_type": "llama"}
PARAMS = """\
ffn_type: gelu
fsdp: False
fsdp_amp: False
fsdp_pure_bf16: False
model: mine
model_norm: rms_norm
moe_freq: 0
moe_num_experts: None
positional_embedding_type: none
precision: amp_bfloat16
qk_norm: True
report_to:
vocab_size: 80
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Where a run's checkpoint would lie; the file itself is never looked at."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "epoch_1.pt"


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_registered_models() -> None:
    models = registered_models()
    assert len(models) == 27
    for name, fields in models.items():
        assert resolve_config(name, Path("nowhere/x.pt")).hidden_dim == fields["hidden_dim"]
    assert models["m1b_neox"] == models["open_lm_1b"]
    assert models["open_lm_1b_old"]["positional_embedding_type"] == "head_rotary"
    assert "positional_embedding_type" not in models["open_lm_1b"], "left to the command line"
    for name, *widths in (
        ("open_lm_160m", 768, 2048, 64, 768),
        ("open_lm_1b", 2048, 5632, 128, 2048),
        ("open_lm_3b", 2560, 6912, 80, 2560),
        ("l7b_neox", 4096, 11008, 128, 4096),
        ("aphid_neox", 488, 1536, 40, 480),
    ):
        config = resolve_config(name, Path("nowhere/x.pt"))
        assert [config.hidden_dim, config.ffn_dim, config.head_dim, config.attention_dim] == widths
        assert config.model_copy(update={"ffn_type": "gelu"}).ffn_dim == 4 * config.hidden_dim


def test_model_spec_in_three_forms(tmp_path: Path, checkpoint: Path) -> None:
    write(tmp_path / "mine.json", SHAPE | {"comment": "ignored"})
    for spec in (read_model_spec("mine.json", tmp_path), read_model_spec(str(tmp_path / "mine.json")), SHAPE):
        assert read_model_spec(spec) == spec
        assert ModelConfig(**spec) == ModelConfig(**SHAPE)
    assert read_model_spec("open_lm_1b")["hidden_dim"] == 2048
    config = resolve_config(SHAPE, checkpoint)
    assert (config.model_norm, config.qk_norm, config.ffn_type) == ("default_layer_norm", False, "swiglu")
    assert (config.positional_embedding_type, config.norm_eps, config.precision) == ("rotary", 1e-5, None)
    dense = {"moe_freq": 0, "moe_num_experts": 8, "moe_top_k": 2}
    assert read_model_spec(SHAPE | dense) == SHAPE | dense


MAMBA = {"d_model": 8, "n_layer": 2, "vocab_size": 9, "seq_len": 8}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        *(
            (SHAPE | changes, InvalidModelConfig, message)
            for changes, message in (
                ({"hidden_dim": None}, "hidden_dim is 'None': input should be a valid integer"),
                ({"hidden_dim": "24"}, "hidden_dim is '24': input should be a valid integer"),
                ({"n_layers": 10**9}, "n_layers is '1000000000': input should be less than or equal to 512"),
                ({"n_layers": 513}, "n_layers is '513': input should be less than or equal to 512"),
                ({"vocab_size": -1}, "vocab_size is '-1': input should be greater than 0"),
                ({"weight_tying": "yes"}, "weight_tying is 'yes'"),
                ({"model_norm": "layer_norm"}, "model_norm is 'layer_norm': input should be 'default_layer_norm'"),
                ({"n_heads": 25}, "n_heads 25 is more than hidden_dim 24"),
                ({"n_heads": 8}, "heads of width 3; rotary turns pairs and needs an even width"),
            )
        ),
        (
            {key: value for key, value in SHAPE.items() if key != "n_layers"} | {"num_layers": 2, "lr": 1},
            InvalidModelConfig,
            r"n_layers is missing \(found num_layers: is one of these meant\?\)",
        ),
        (SHAPE | {"ffn_type": "moe"}, UnsupportedModel, "is a mixture of experts"),
        (SHAPE | {"moe_freq": 2, "moe_num_experts": 8}, UnsupportedModel, "is a mixture of experts"),
        *((model, UnsupportedModel, "is a mamba model") for model in ("mamba_1b", "configs/mamba_7b.json", MAMBA)),
        ("open_lm_411m", UnknownName, r"did you mean .*'open_lm_410m'"),
        *(
            (model, InvalidModelConfig, "there is no model JSON at")
            for model in ("nowhere.json", "some/where", "/dev/null", "x/" + "y" * 300)
        ),
    ],
)
def test_models_that_are_refused(model: str | dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_model_spec(model)


def test_broken_json(tmp_path: Path) -> None:
    for content, message in (
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds a list; a model JSON is an object"),
        ('{"a": "' + "x" * 10_000_000 + '"}', "is larger than 10,000,000 bytes"),
        ('{"a": [' + "{}," * 499_999 + "{}]}", "has more than 500,000 values"),
    ):
        assert message in refusal(InvalidModelConfig, read_model_spec, str(write(tmp_path / "mine.json", content)))


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_golden_runs(case: str) -> None:
    path = GOLDEN / case / "checkpoints" / "epoch_1.pt"
    config = resolve_config(None, path)
    written = json.loads((GOLDEN / case / f"golden_{case}.json").read_text())
    assert config.model_dump(include=set(written)) == written
    assert config.precision == "fp32"


def params(**changes: str) -> str:
    lines = dict(line.partition(":")[::2] for line in PARAMS.splitlines())
    return "".join(f"{key}: {value}\n" for key, value in {**lines, **changes}.items())


@pytest.mark.parametrize(
    ("above", "beside", "expected"),
    [
        (
            {"params.txt": PARAMS, "mine.json": SHAPE | {"ffn_type": "gemma_geglu"}},
            {},
            {"ffn_type": "gemma_geglu", "model_norm": "rms_norm", "qk_norm": True, "precision": "amp_bfloat16"},
        ),
        ({"params.txt": params(model="ant_neox")}, {}, {"hidden_dim": 768, "qk_norm": True}),
        ({"params.txt": params(model="open_lm_25m")}, {"params.txt": params(model="open_lm_11m")}, {"hidden_dim": 96}),
        ({"params.txt": PARAMS}, {"mine.json": SHAPE, "another.json": SHAPE | {"n_layers": 3}}, {"n_layers": 2}),
        ({"params.txt": PARAMS}, {"renamed.json": SHAPE}, {"model_norm": "rms_norm"}),
        ({"a.json": SHAPE | {"vocab_size": 81}, "b.json": {"rate": 1}}, {"c.json": "{"}, {"vocab_size": 81}),
        ({"a.json": SHAPE | {"vocab_size": 81}}, {"b.json": SHAPE}, {"vocab_size": 80}),
    ],
)
def test_files_are_found_beside_the_checkpoint_before_the_folder_above(
    checkpoint: Path, tmp_path: Path, above: dict[str, Any], beside: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A model's JSON wins over params.txt, which may name it, and that over open_lm's defaults."""
    for folder, files in ((checkpoint.parent.parent, above), (checkpoint.parent, beside)):
        for name, content in files.items():
            write(folder / name, content)
    config = resolve_config(None, checkpoint)
    assert expected.items() <= config.model_dump().items()
    # The service looks at submission; by evaluation the checkpoint may be a copy in another folder.
    kept = json.loads(json.dumps(find_model_config(checkpoint)))
    assert resolve_config(kept, tmp_path / "spool" / "x.pt") == config


CUSTOM = {"attn_name": "custom_attn", "attn_activation": "softmax", "attn_seq_scalar": "avg"}
RELU = CUSTOM | {"attn_activation": "relu", "attn_seq_scalar_alpha": "0.5"}


@pytest.mark.parametrize(
    "flags", [RELU, CUSTOM | {"attn_seq_scalar_alpha": "0.5"}, {"attn_name": "hunter2"}, {"attn_name": "custom_attn"}]
)
def test_attention_that_is_not_computed_is_refused(checkpoint: Path, tmp_path: Path, flags: dict[str, str]) -> None:
    """Losses of a model with ReLU attention were off by 4.86 nats, `verify` agreed, and no word was said."""
    message = r"chooses by attn_.* an attention that is not open_lm's softmax attention, .* with `attn_name` auto, "
    write(checkpoint.parent.parent / "params.txt", params(**flags))
    for model in (SHAPE, SHAPE | {"attn_name": "torch_attn"}):
        assert re.search(rf"params\.txt {message}", refusal(UnsupportedModel, resolve_config, model, checkpoint))
    for content in ({"params_args_dict": flags | {"model": "ant_neox"}}, {"dim": 32, "n_layers": 3, **flags}):
        write(tmp_path / "config.json", content)
        assert re.search(rf"config\.json {message}", refusal(UnsupportedModel, resolve_config, None, tmp_path))


def test_attention_by_another_program_is_the_same(checkpoint: Path) -> None:
    """And softmax(q·k) / L^α with L = 1 or α = 0."""
    unscaled = {"attn_seq_scalar_alpha": "0.5", "attn_seq_scalar": "none"}, {"attn_seq_scalar_alpha": "0.0"}
    programs = ("auto", "xformers_attn", "torch_attn", "None", "xformers_attn_variable_length")
    for flags in (*({"attn_name": name} for name in programs), *(CUSTOM | scale for scale in unscaled)):
        write(checkpoint.parent.parent / "params.txt", params(**flags))
        assert resolve_config(SHAPE, checkpoint).hidden_dim == 24


def test_params_complete_an_explicit_model(checkpoint: Path) -> None:
    """A registered name leaves qk-norm to the command line, exactly as in open_lm."""
    write(checkpoint.parent.parent / "params.txt", PARAMS)
    assert resolve_config("open_lm_160m", checkpoint).qk_norm
    assert resolve_config(SHAPE, checkpoint).model_norm == "rms_norm"
    assert not resolve_config(SHAPE | {"qk_norm": False}, checkpoint).qk_norm
    for flag, fsdp in product(("fsdp_amp", "fsdp_pure_bf16", "fsdp_cpu_offload"), (True, False)):
        write(checkpoint.parent.parent / "params.txt", params(fsdp=f"{fsdp}", **{flag: "True"}))
        precision = "fsdp_bf16" if fsdp and flag != "fsdp_cpu_offload" else "amp_bfloat16"
        assert resolve_config(SHAPE, checkpoint).precision == precision, "a policy counts with FSDP only"
    write(checkpoint.parent.parent / "params.txt", params(moe_freq="2"))
    assert "moe_freq is not 0" in refusal(UnsupportedModel, resolve_config, SHAPE, checkpoint)
    write(checkpoint.parent.parent / "params.txt", params(model="mamba_1b"))
    assert "'mamba_1b' is a mamba model" in refusal(UnsupportedModel, resolve_config, None, checkpoint)


FLOW = {"model_type": "multi_modality", "vision_gen_enc_config": {"cls": "ShallowUViTEncoder"}}
EMU35 = LLAMA | {"model_type": "Emu3", "auto_map": {"AutoModelForCausalLM": "x.Y"}, "head_dim": 8, "rms_norm_eps": 1e-6}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"_class_name": "Showo", "llm_model_path": "x"},
            "is of Show-o, which fills in .* model.showo.save_pr",
        ),
        ({"_class_name": "Showo2Qwen2_5"}, "is of Show-o2, which draws images by a flow"),
        (FLOW | {"language_config": {}}, r"is of JanusFlow, .* model.language_model.save_pretrained\(FOLDER\)"),
        ({"model_type": "t2i", "dim": 32}, "is of LlamaGen's text-to-image model, whose captions .* llamagen-vq-16"),
        (EMU35, "is of Emu3.5, which writes a text of its own .* a copy of config.json with model_type `qwen3`"),
    ],
)
def test_a_model_that_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """Found in a folder, given by its path, and given as fields; a field of another type is no sign of a model."""
    path = write(tmp_path / "config.json", fields)
    assert re.search(f"{path} {message}", refusal(UnsupportedModel, find_model_config, tmp_path))
    assert re.search(f"{path} {message}", refusal(UnsupportedModel, read_model_spec, str(path)))
    assert re.search(message, refusal(UnsupportedModel, resolve_config, fields, tmp_path))
    followed = {name: value for name, value in EMU35.items() if name != "auto_map"} | {"model_type": "qwen3"}
    assert resolve_config(followed, tmp_path).qk_norm_per_head, "the advice for Emu3.5"
    write(path, {"_class_name": ["Showo"], "n_embed": {}})
    assert find_model_config(tmp_path) is None


def test_nothing_beside_and_two_that_are_not_chosen_between(checkpoint: Path) -> None:
    assert find_model_config(checkpoint) is None
    with pytest.raises(InvalidModelConfig, match=r"none was found in its folder .*; set `model` to a registered name"):
        resolve_config(None, checkpoint)
    for name in ("a.json", "b.json"):
        write(checkpoint.parent / name, SHAPE)
    with pytest.raises(InvalidModelConfig, match=r"2 model JSONs are in .*: a\.json, b\.json; set `model` to one"):
        find_model_config(checkpoint)


def test_open_lms_formats_of_hugging_face(tmp_path: Path) -> None:
    flat = {"model_type": "openlm", "architectures": ["OpenLMForCausalLM"], "dim": 32, "n_layers": 3, "vocab_size": 90}
    flat |= {"norm_eps": 1e-6, "norm_type": "gain_only_lp_layer_norm", "apply_qk_norm": True, "moe_freq": 0}
    write(tmp_path / "config.json", flat)
    config = resolve_config(None, tmp_path)
    assert (config.hidden_dim, config.n_layers, config.n_heads, config.seq_len) == (32, 3, 8, 2048)
    assert (config.norm_eps, config.model_norm, config.qk_norm) == (1e-6, "gain_only_lp_layer_norm", True)
    assert resolve_config(flat, tmp_path / "x.pt") == config
    args = {"model": "ant_neox", "qk_norm": True, "precision": "amp_bfloat16", "model_norm": "None"}
    write(tmp_path / "config.json", {"model_type": "openlm", "params_args_dict": args})
    config = resolve_config(None, tmp_path / "pytorch_model.bin")
    assert (config.hidden_dim, config.qk_norm, config.precision) == (768, True, "amp_bfloat16")
    assert config.model_norm == "default_layer_norm"
    write(tmp_path / "config.json", {"params_args_dict": {"model": "mine"}})
    with pytest.raises(InvalidModelConfig, match=r"names only the model 'mine' .*; add the JSON"):
        resolve_config(None, tmp_path)
    write(tmp_path / "mine.json", SHAPE)
    assert resolve_config(None, tmp_path).hidden_dim == 24


def test_config_of_no_family_is_the_last_choice(tmp_path: Path) -> None:
    """It may be that of a wrapper around a model of open_lm, whose own JSON is next to it."""
    sizes = {"n_embd": 768, "n_layer": 12, "vocab_size": 50257}
    write(tmp_path / "config.json", {"model_type": "gpt2", **sizes})
    config = resolve_config(None, tmp_path)
    assert (config.family, config.hidden_dim, config.n_layers) == ("transformers", 768, 12)
    write(tmp_path / "mine.json", SHAPE)
    assert resolve_config(None, tmp_path).family == "open_lm"


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_dim": "hunter2"},
        {"model_norm": "hunter2"},
        {"moe_freq": "hunter2"},
        {"params_args_dict": {"model": "my hunter2, (which is no name)"}},
        LLAMA | {"hidden_size": "hunter2"},
        LLAMA | {"rope_scaling": {"type": "linear", "factor": "hunter2"}},
        LLAMA | {"hidden_act": "(a hunter2)"},
    ],
)
def test_no_message_quotes_a_value_of_a_file(tmp_path: Path, checkpoint: Path, fields: dict[str, Any]) -> None:
    """Who names a file need not be who may read it; what came with the request is shown, see above."""
    path = write(tmp_path / "model.json", SHAPE | fields)
    assert refusal((InvalidModelConfig, UnsupportedModel), read_model_spec, str(path))
    write(checkpoint.parent.parent / "params.txt", "model_norm: hunter2")
    assert "model_norm: input should be" in refusal(InvalidModelConfig, resolve_config, SHAPE, checkpoint)
