"""Every switch of a model's configuration moves its logits, or no longer fits its file.

Values are held to transformers in `families/test_against_transformers.py`; here none can be without effect.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import ROWS, write_ours

from evalsvc.errors import CheckpointMismatch
from evalsvc.models import load_model
from evalsvc.spec.model_config import OPEN_LM_FIELDS, ModelConfig

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
    ("qwen2", {"weight_tying": False}),
    ("llama", {"weight_tying": True}),
    ("llama", {"ffn_type": "plain"}),
    ("llama", {"family": "gpt_neox"}),
]
"""Changes of a configuration with which the file no longer fits."""


@pytest.mark.parametrize(("name", "changes"), [*SAME_FILE, *ANOTHER_FILE], ids=str)
@torch.inference_mode()
def test_a_switch_moves_the_logits_or_no_longer_fits(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
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
    refuses = {"attention_window", "transformers_config"}  # changes no logit, see test_rotation.py
    assert tested >= ModelConfig.model_fields.keys() - OPEN_LM_FIELDS - refuses
