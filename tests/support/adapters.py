"""LoRA adapters by peft on small models of transformers, and adapters by hand for what peft would not write."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import write_theirs
from torch import Tensor

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def write_by_peft(
    family: str, base: Path, folder: Path, seed: int = 0, dtype: Any = torch.float32, **fields: Any
) -> Any:
    """Have peft write an adapter with random factors into `folder`, and return the base with the adapter merged into it
    by peft. The base is written into `base` unless it is there."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install '.[test]'")
    from transformers import AutoModelForCausalLM

    if not base.exists():
        write_theirs(family, base, dtype=dtype)
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), peft.LoraConfig(**fields))
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = 0.3 * torch.randn_like(parameter) + parameter.data * ("lora_" not in name)
        model.save_pretrained(folder)
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), folder)
        return loaded.merge_and_unload()


def write_by_hand(folder: Path, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """Write an adapter of the model `llama` of `tiny_families`, or of other tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    own = {f"{module}.lora_A.weight": torch.randn(2, 48), f"{module}.lora_B.weight": torch.randn(48, 2)}
    save_file(own if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder
