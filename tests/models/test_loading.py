"""From a file to a model: strictness, what a mismatch says, and memory."""

import json
import shutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file
from tiny_families import MODELS, ROWS, describe, write_ours
from torch import Tensor

from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite, UnknownName
from evalsvc.families.family import Source
from evalsvc.families.hugging_face import LlamaNamed
from evalsvc.families.llama import LlamaFields
from evalsvc.families.reading import find_model_config, resolve_config
from evalsvc.models import Transformer, load_model
from evalsvc.spec import catalog
from evalsvc.spec.model_config import OPEN_LM_FIELDS, ModelConfig

Change = Callable[[dict[str, Tensor]], Any]


def config_of(case: Path) -> dict[str, Any]:
    fields = find_model_config(case / "checkpoints" / "epoch_1.pt")
    assert fields is not None
    return fields


def changed(case: Path, tmp_path: Path, change: Change) -> Path:
    stored = read_weights(case / "checkpoints" / "epoch_1.pt").tensors
    tensors = {name: tensor.clone() for name, tensor in stored.items()}
    change(tensors)
    torch.save(tensors, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def mismatch(path: Path, config: Any = None) -> str:
    return refusal(CheckpointMismatch, load_model, path, config)


def as_golden(model: Transformer, case: Path) -> bool:
    expected = load_file(case / "expected.safetensors")
    return bool((model(expected["input_ids"]) - expected["logits_full"]).abs().max() < 1e-5)


GOLDEN = Path(__file__).parents[1] / "golden" / "open_lm"
PLAIN = GOLDEN / "01_rotary_default_ln_swiglu"
GELU = GOLDEN / "07_none_lp_ln_gelu"
EPOCH = GOLDEN / "14_all_defaults_ema_optimizer_t2i_vocab" / "checkpoints" / "epoch_1.pt"
TIED = GOLDEN / "11_rotary_gain_only_ln_postembed_tied_swiglu_torch"


def test_ready_for_inference() -> None:
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        model = load_model(str(EPOCH), dtype=dtype)
        stated = {(str(each.dtype), each.device.type, each.requires_grad) for each in model.parameters()}
        assert (stated, model.training) == ({(f"torch.{dtype}", "cpu", False)}, False)
        assert model(torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float32
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        load_model(EPOCH, dtype="bfloat61")


@pytest.mark.parametrize("name", ["epoch_1.pt", "llama", "gpt_neox"])
def test_the_model_does_not_need_the_file(name: str, tmp_path: Path) -> None:
    """Weights are copied off the mapped file: a run that writes its checkpoint again must not change the model."""
    if name == EPOCH.name:
        path, written = tmp_path / name, load_model(EPOCH)
        shutil.copy(EPOCH, path)
        model = load_model(path, config_of(EPOCH.parent.parent))
    else:
        path, written = tmp_path / "model.safetensors", write_ours(name, tmp_path)
        model = load_model(tmp_path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(written, model)


@pytest.mark.parametrize(
    ("case", "dropped"),
    [(GELU, "_ff_w"), (GELU, "feed_forward."), (TIED, "output.weight"), (TIED, "tok_embeddings.weight")],
)
def test_a_weight_with_two_names_may_have_either(case: Path, dropped: str, tmp_path: Path) -> None:
    path = changed(case, tmp_path, lambda t: [t.pop(name) for name in list(t) if dropped in name])
    model = load_model(path, config_of(case))
    assert (model.output.weight is model.tok_embeddings.weight) == (case == TIED)
    assert as_golden(model, case)


def frequencies(change: Callable[[Tensor], Tensor], where: str = "inv_freq") -> Change:

    def made(tensors: dict[str, Tensor]) -> None:
        names = [name for name in tensors if where in name and "inv_freq" in name]
        tensors.update({name: change(tensors[name]) for name in names})

    return made


def double(saved: Tensor) -> Tensor:
    return 2 * saved


SAYS_NOTHING: dict[str, tuple[Path, Change]] = {
    "none": (PLAIN, lambda t: [t.pop(name) for name in list(t) if "inv_freq" in name]),
    "float64": (PLAIN, frequencies(lambda saved: saved.double())),
    "bfloat16": (PLAIN, frequencies(lambda saved: saved.bfloat16())),
    "one layer rounded": (PLAIN, frequencies(lambda saved: saved.bfloat16().float(), "layers.1")),
    "float16": (PLAIN, frequencies(lambda saved: saved.half())),
    "powers of another device": (PLAIN, frequencies(lambda saved: saved * (1 + 2e-7))),
    "queries and keys are turned alike": (GOLDEN / "03_head_rotary_default_ln_swiglu", frequencies(double)),
}


@pytest.mark.parametrize("name", SAYS_NOTHING)
def test_inv_freq_that_moves_nothing_says_nothing(tmp_path: Path, name: str) -> None:
    """How the table was rounded in training is for the configuration to say, in every file of a series alike."""
    case, change = SAYS_NOTHING[name]
    model = load_model(changed(case, tmp_path, change), config_of(case))
    assert model.saved_inv_freq == ()
    assert as_golden(model, case)


def test_other_frequencies_are_used_as_the_file_has_them(tmp_path: Path) -> None:
    """On a GPU open_lm computes with them: with doubled ones, what the table gives at twice the position."""
    paths = changed(PLAIN, tmp_path, frequencies(double)), PLAIN / "checkpoints" / "epoch_1.pt"
    own, table = (load_model(path, config_of(PLAIN)).double() for path in paths)
    ids = torch.arange(2, 14)[None]
    doubled = table(ids, positions=2 * torch.arange(12)[None])
    torch.testing.assert_close(own(ids), doubled, rtol=0, atol=1e-5)
    assert (own(ids) - table(ids)).abs().max() > 0.1
    assert own.saved_inv_freq == tuple(double(table.positions.inv_freq).tolist())
    # Under autocast open_lm rounds what it has loaded, whatever that is; the provenance has the file's values.
    path = changed(PLAIN, tmp_path, frequencies(lambda saved: saved / 3))
    saved = read_weights(path).tensors["layers.0.attention.pos_embed.inv_freq"]
    model = load_model(path, config_of(PLAIN), dtype="bfloat16", rotary_inv_freq_dtype="bfloat16")
    assert torch.equal(model.positions.inv_freq, saved.bfloat16().float())
    assert model.saved_inv_freq == tuple(saved.tolist())


def poked(value: float, *names: str) -> Change:
    return lambda tensors: [tensors[name].view(-1)[0].fill_(value) for name in names]


INV_FREQ = "layers.1.attention.pos_embed.inv_freq"
UNEQUAL = "x.pt saves rotary frequencies that are neither open_lm's table nor equal in all layers; write the model's"
SHAPES = (
    "1 missing: norm.weight; 1 unexpected: norm.w; 1 wrongly shaped: layers.0.ffn_norm.bias [25] instead of [24]; the "
    "file holds hidden_dim 24, n_layers 2, vocab_size 80, head_dim 6"
)
TABLES = "tok_embeddings.weight and output.weight"
ODD = (torch.zeros(24, dtype=torch.int8), torch.zeros(24).to_sparse(), torch.zeros(24, device="meta"))
FILES: list[tuple[Path, str, Change]] = [
    (GELU, "with different values: layers.1.feed_forward.2.weight and", poked(9, "layers.1._ff_w2.weight")),
    (TIED, f"with different values: {TABLES}", poked(9, "output.weight")),
    (TIED, f"with different values: {TABLES}", lambda t: t.update({"output.weight": t["output.weight"].to_sparse()})),
    (PLAIN, UNEQUAL, frequencies(double, "layers.1")),
    (PLAIN, UNEQUAL, frequencies(double, "layers.0")),
    (PLAIN, UNEQUAL, lambda t: [frequencies(double)(t), t.pop(INV_FREQ)]),
    (PLAIN, SHAPES, lambda t: t.update({"norm.w": t.pop("norm.weight"), "layers.0.ffn_norm.bias": torch.zeros(25)})),
    (PLAIN, "it is not an open_lm model", lambda t: t.clear() or t.update(x=torch.zeros(4))),
    *((PLAIN, "1 no plain floating-point tensor", lambda t, odd=odd: t.update({"norm.bias": odd})) for odd in ODD),
]


@pytest.mark.parametrize(("case", "message", "change"), FILES)
def test_what_does_not_fit_is_refused(case: Path, message: str, change: Change, tmp_path: Path) -> None:
    assert message in mismatch(changed(case, tmp_path, change), config_of(case))


ANOTHER_SIZE = (
    "does not match the model configuration (hidden_dim 2048, n_layers 24, vocab_size 80)",
    "nearest registered model is open_lm_test_tiny",
    " more",
)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"n_layers": 24, "hidden_dim": 2048}, ANOTHER_SIZE),
        ({"vocab_size": 79}, ["vocab_size 79 is smaller than its 80 rows"]),
        ({"vocab_size": 112}, ["vocab_size 112 is larger than its 80 rows"]),
        # Only the width of inv_freq tells: all other shapes are the same, and the logits would be plausible nonsense.
        ({"n_heads": 2}, ["wrongly shaped: layers.0.attention.pos_embed.inv_freq [3] instead of [6]"]),
        ({"positional_embedding_type": "llama_rotary"}, ["2 unexpected: layers.0.attention.pos_embed.inv_freq"]),
    ],
)
def test_configuration_of_another_model(changes: dict[str, Any], fragments: Sequence[str]) -> None:
    said = mismatch(PLAIN / "checkpoints" / "epoch_1.pt", {**config_of(PLAIN), **changes})
    assert [fragment for fragment in fragments if fragment not in said] == []


# NaN is not equal to itself, and a diverged run must not be called a mismatch.
TWICE = ("layers.0._ff_w1.weight", "layers.0.feed_forward.0.weight")


@pytest.mark.parametrize(
    ("case", "message", "change"),
    [
        (PLAIN, r"infinity in layers\.0\.attention\.pos_embed\.inv_freq", frequencies(lambda saved: saved / 0)),
        (PLAIN, r"in 1 of 20 tensors.*norm\.weight", poked(torch.nan, "norm.weight")),
        (PLAIN, r"read as float16: norm\.weight", poked(1e5, "norm.weight")),
        (GELU, r"layers\.0\.feed_forward\.0\.weight", poked(torch.nan, *TWICE)),
    ],
)
def test_values_that_are_not_finite(case: Path, message: str, change: Change, tmp_path: Path) -> None:
    path, narrow = changed(case, tmp_path, change), "read as" in message
    if narrow:
        load_model(path, config_of(case))
    with pytest.raises(NonFinite, match=message):
        load_model(path, config_of(case), dtype="float16" if narrow else "float32")


def test_nearest_name_goes_by_shapes(tmp_path: Path) -> None:
    """The 1B shape with a widened table, posted as the 160M model."""
    table = torch.zeros(66832, 2048, dtype=torch.int8)
    tensors = {"tok_embeddings.weight": table} | {f"layers.{i}.attention_norm.weight": table[0] for i in range(24)}
    torch.save(tensors, tmp_path / "x.pt")
    said = mismatch(tmp_path / "x.pt", "open_lm_160m")
    assert "hidden_dim 2048, n_layers 24, vocab_size 66832" in said
    assert "nearest registered model is open_lm_1b (hidden_dim 2048, n_layers 24, n_heads 16)" in said
    assert "vocab_size 50432 is smaller than its 66832 rows" in said


def rewrite(folder: Path, change: Change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def equal(first: Transformer, second: Transformer) -> bool:
    others = dict(second.state_dict())
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_back_what_was_written(name: str, tmp_path: Path) -> None:
    written = write_ours(name, tmp_path)
    model = load_model(tmp_path)
    assert model.config == written.config
    assert equal(written, model)
    assert model.config.family == MODELS[name][0].removesuffix("_text_model")
    path = tmp_path / "model.safetensors"
    assert equal(written, load_model(path, describe(name))), "the file alone, with its configuration given"


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


HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"
KEYS = "layers.0.self_attn.k_proj.weight"
WIDENED = "the file holds hidden_dim 48, n_layers 2, vocab_size 96; vocab_size 90 is smaller than its 96 rows: correct"


@pytest.mark.parametrize(
    ("name", "message", "change", "changes"),
    [
        ("llama", f"1 missing: {KEYS}", lambda t: t.pop(KEYS), {}),
        ("llama", f"{KEYS} [48, 48] instead of [16, 48]", lambda t: t.update({KEYS: torch.ones(48, 48)}), {}),
        ("gpt_neox", "it is not a gpt_neox model", lambda t: t.clear() or t.update(x=torch.ones(1)), {}),
        ("llama-3", "holds hidden_dim 48", lambda t: t.update({HEAD: t.pop(TABLE), "x": t[KEYS] + 0}), {}),
        ("llama", WIDENED, lambda t: None, {"vocab_size": 90}),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    name: str, message: str, change: Change, changes: dict[str, Any], tmp_path: Path
) -> None:
    write_ours(name, tmp_path)
    rewrite(tmp_path, change)
    (tmp_path / "config.json").write_text(json.dumps(describe(name, **changes)))
    said = mismatch(tmp_path)
    assert message in said
    assert "registered model" not in said


class SplitLlama(LlamaNamed):
    """A Llama with tables of its own for images."""

    def sources(self, config: ModelConfig) -> Mapping[str, Source]:
        rows = (32, config.vocab_size - 32)
        return {
            **super().sources(config),
            "tok_embeddings.weight": Source(("embed_tokens.weight", "image_embed.weight"), rows),
            "output.weight": Source(("lm_head.weight", "image_head.weight"), rows),
        }


def test_tables_of_images_are_joined_by_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("split_llama")
    module.__dict__["SPLIT_LLAMA"] = SplitLlama("split_llama", LlamaFields)
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
    write_ours("llama", tmp_path)
    huge = {"hidden_size": 2**20, "intermediate_size": 2**24, "num_attention_heads": 2**10, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(describe("llama", **huge)))
    assert resolve_config(None, tmp_path).hidden_dim == 2**20
    assert "instead of [16777216, 1048576]" in mismatch(tmp_path)


LINEAR = {"kind": "linear", "factor": 2.0}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 32}

SAME_FILE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"n_heads": 3, "n_kv_heads": 1, "head_size": 16}),
    ("llama-3", {"n_heads": 12, "n_kv_heads": 4, "head_size": 8}),
    ("llama", {"rotary_base": 600.0}),
    ("llama", {"rotary_dims": 4}),
    ("gpt_neox", {"rotary_dims": 4}),
    ("llama", {"rotary_scaling": LINEAR}),
    ("llama-linear", {"rotary_scaling": LINEAR}),
    ("llama-3", {"rotary_scaling": LLAMA3 | {"factor": 4.0}}),
    ("llama-3", {"rotary_scaling": LLAMA3 | {"low_freq_factor": 2.0}}),
    ("llama-3", {"rotary_scaling": LLAMA3 | {"high_freq_factor": 3.0}}),
    ("llama-3", {"rotary_scaling": LLAMA3 | {"original_length": 64}}),
    ("llama-3", {"rotary_scaling": None}),
    ("llama", {"norm_eps": 1e-2}),
    ("llama", {"model_norm": "rms_norm_plus_one"}),
    ("gemma", {"model_norm": "rms_norm"}),
    ("gemma", {"embedding_scale": 6.0}),
    ("llama", {"ffn_activation": "gelu"}),
    ("gemma", {"ffn_activation": "gelu"}),
    ("gpt_neox-serial", {"ffn_activation": "gelu"}),
    ("gpt_neox", {"parallel_residual": False}),
    ("llama", {"norm_place": "after"}),
    ("llama", {"positional_embedding_type": "llama_rotary"}),
    ("llama", {"positional_embedding_type": "none"}),
]
"""Changes of a configuration with which the file still fits."""

ANOTHER_FILE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"n_kv_heads": None}),
    ("llama-3", {"head_size": None}),
    ("llama", {"ffn_size": None}),
    ("llama", {"attention_bias": True}),
    ("llama-biases", {"attention_bias": False}),
    ("llama-biases", {"output_bias": False}),
    ("llama-biases", {"ffn_bias": False}),
    ("llama", {"qk_norm": True}),
    ("qwen3", {"qk_norm_per_head": False}),
    ("olmo2", {"qk_norm_per_head": True}),
    ("chameleon", {"qk_layer_norm": False}),
    ("qwen2", {"weight_tying": False}),
    ("llama", {"weight_tying": True}),
    ("llama", {"ffn_type": "plain"}),
    ("llama", {"family": "gpt_neox"}),
]
"""Changes of a configuration with which the file no longer fits."""


@pytest.mark.parametrize(("name", "changes"), [*SAME_FILE, *ANOTHER_FILE], ids=str)
@torch.inference_mode()
def test_a_switch_moves_the_logits_or_no_longer_fits(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Values are held to transformers in tests/families; here none can be without effect."""
    config = write_ours(name, tmp_path).config
    changed = ModelConfig.model_validate(config.model_dump() | changes)
    assert changed != config
    if (name, changes) in ANOTHER_FILE:
        with pytest.raises(CheckpointMismatch):
            load_model(tmp_path, changed)
        return
    ids = torch.randint(ROWS, (2, 50), generator=torch.Generator().manual_seed(1))
    moved = (load_model(tmp_path, changed)(ids) - load_model(tmp_path)(ids)).abs().max()
    assert moved > 1e-4, "ten times what two programs differ by"


def test_no_switch_is_left_out() -> None:
    tested = {switch for _, changes in (*SAME_FILE, *ANOTHER_FILE) for switch in changes}
    refuses = {"attention_window", "transformers_config"}  # changes no logit, see test_transformer.py
    of_images = {"image_tables"}  # see tests/families/test_janus.py
    assert tested >= ModelConfig.model_fields.keys() - OPEN_LM_FIELDS - refuses - of_images
