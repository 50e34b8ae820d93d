"""Adapters on their bases, against peft's own merging."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_by_hand, write_by_peft
from safetensors.torch import load_file, save_file
from tiny_families import write_ours
from torch import Tensor

from evalsvc.checkpoints.expression import parse_expression
from evalsvc.errors import CheckpointMismatch, UnsupportedModel
from evalsvc.families.reading import resolve_config
from evalsvc.models import Transformer, load_model
from evalsvc.models.loading import load_virtual

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCALED = {
    "rank_pattern": {"layers.0.self_attn.q_proj": 3, "up_proj": 1},
    "alpha_pattern": {"model.layers.1.mlp.up_proj": 7},
}
SAVED = {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "some parts of joined tensors": ("llama", {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 4}),
    "ranks and factors by pattern": ("llama", {"target_modules": ALL, "r": 4, "lora_alpha": 3, **SCALED}),
    "by the root of the rank": ("qwen2", {"target_modules": ALL, "r": 4, "use_rslora": True}),
    "biases": ("llama-biases", {"target_modules": ["o_proj"], "bias": "all"}),
    "fan_in_fan_out": ("llama", {"target_modules": ["o_proj"], "fan_in_fan_out": True}),
    "whole modules": ("llama", SAVED),
    "a whole part of a joined tensor": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["k_proj"]}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "another order of rows": ("gpt_neox", {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"]}),
    "norms around": ("olmo2", {"target_modules": ALL, "modules_to_save": ["q_norm"]}),
    "tied tables": ("gemma", {"target_modules": "all-linear"}),
}


def load(text: str, base: Path | None = None) -> Transformer:
    expression = parse_expression(text)
    parents = {path: Path(path) for path in re.findall(r"/[^ ,)]+", text)}
    return load_virtual(expression, parents, resolve_config(None, base or Path(text.split(" ")[0])))


def difference(one: Transformer, other: Transformer) -> float:
    theirs = other.state_dict()
    return max(float((value.double() - theirs[name].double()).abs().max()) for name, value in one.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_that_peft_merges(case: str, tmp_path: Path) -> None:
    family, fields = CASES[case]
    base, folder, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    write_by_peft(family, base, folder, **fields).save_pretrained(merged)
    found = load(f"{base} + lora({folder})")
    assert difference(found, load_model(merged)) < 1e-6
    assert difference(found, load_model(base)) > 0.01


def test_in_bfloat16_the_base_keeps_its_digits(tmp_path: Path) -> None:
    """peft rounds the sum to the dtype of the base. Ours is as far from it as that rounding, and no further."""
    base, folder, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    model = write_by_peft("llama", base, folder, dtype=torch.bfloat16, target_modules=ALL)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(merged)
    found = load(f"{base} + lora({folder})").state_dict()
    for name, value in load_model(merged).state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=2**-7, atol=2**-8)


def test_adapters_are_combined_as_their_sums_are(tmp_path: Path) -> None:
    """Inside every function, and where an adapter holds a whole tensor."""
    base, one, two = (tmp_path / name for name in ("base", "one", "two"))
    write_by_peft("llama", base, one, 1, target_modules=["q_proj"], modules_to_save=["lm_head"]).save_pretrained(
        tmp_path / "a"
    )
    write_by_peft("llama", base, two, 2, target_modules=["q_proj", "down_proj"]).save_pretrained(tmp_path / "b")
    first, second = load_model(tmp_path / "a").state_dict(), load_model(tmp_path / "b").state_dict()
    plain = load_model(base).state_dict()

    sums = f"{base} + lora({one})", f"{base} + lora({two})"

    def of(text: str) -> dict[str, Tensor]:
        return load(text, base).state_dict()

    for name, value in of(f"lerp({sums[0]}, {sums[1]}, 0.25)").items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name], rtol=0, atol=2e-6)
    for name, value in of(f"graft({sums[0]}, {base}, layers=0, parts=head)").items():
        chosen = name.startswith("layers.0.") or name == "output.weight"
        torch.testing.assert_close(value, plain[name] if chosen else first[name], rtol=0, atol=2e-6)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("llama", {"use_dora": True}, r"sets use_dora, .*merge .*merge_and_unload"),
    "biases of factors": ("llama-biases", {"lora_bias": True}, "sets lora_bias"),
    "tokens": ("llama", {"trainable_token_indices": [1]}, "sets trainable_token_indices"),
    "PiSSA": ("llama", {"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which is not plain LoRA"),
    "tied": ("qwen2", {"target_modules": ["embed_tokens"]}, "one of two tables that are tied"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plain_lora_is_refused_by_name(case: str, tmp_path: Path) -> None:
    family, fields, words = REFUSED[case]
    write_by_peft(family, tmp_path / "base", tmp_path / "adapter", **{"target_modules": ["q_proj"], **fields})
    with pytest.raises(UnsupportedModel, match=words):
        load(f"{tmp_path / 'base'} + lora({tmp_path / 'adapter'})")


def test_an_adapter_of_another_model_is_named(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    write_ours("llama", base)
    module = "base_model.model.model.layers.7.self_attn.q_proj.lora_{}.weight"
    write_by_hand(folder, {module.format("A"): torch.ones(2, 48), module.format("B"): torch.ones(48, 2)})
    with pytest.raises(CheckpointMismatch, match=r"does not hold; 1 unknown or of another shape: layers\.7\."):
        load(f"{base} + lora({folder})")
    module = module.replace("7", "0")
    write_by_hand(folder, {module.format("A"): torch.ones(2, 40), module.format("B"): torch.ones(48, 2)})
    with pytest.raises(CheckpointMismatch, match=r"of another shape: layers\.0\.self_attn\.q_proj\.weight \[48, 40\]"):
        load(f"{base} + lora({folder})")


def test_an_adapter_may_be_a_pickle(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", write_by_hand(tmp_path / "adapter")
    write_ours("llama", base)
    expected = load(f"{base} + lora({folder})")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert difference(load(f"{base} + lora({folder})"), expected) == 0
    save_file(tensors, folder / "adapter_model.safetensors")
    assert difference(load(f"{base} + lora({folder})"), expected) == 0
