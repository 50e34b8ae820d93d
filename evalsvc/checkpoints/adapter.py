"""LoRA adapters as peft writes them: a folder of `adapter_config.json` and `adapter_model.safetensors` or `.bin`.

The tensors say which parameters an adapter changes, and the configuration by how much. A key of the configuration that
is not known to leave the numbers alone is refused where it is set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

from torch import Tensor

from evalsvc.checkpoints.formats import ADAPTER_CONFIG, MAX_ADAPTER_CONFIG, format_of, legible, merge_it, weights_at
from evalsvc.checkpoints.tensors import is_finite, is_plain, some
from evalsvc.checkpoints.weights import READERS, strip
from evalsvc.errors import (
    CheckpointMismatch,
    InvalidModelConfig,
    NonFinite,
    NotACheckpoint,
    UnsupportedModel,
    os_reason,
)
from evalsvc.families.family import read_json

MAX_RANK = 1 << 16

COMPUTED = frozenset(("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"))
WITHOUT_EFFECT = (
    "auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config exclude_modules "
    "fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_dropout "
    "lora_ga_config megatron_core modules_to_save peft_version qalora_group_size revision target_modules task_type"
)
"""Keys that say what was trained, which the tensors say too, or how it was. In all families peft takes `fan_in_fan_out`
for false, and the configurations of initialisations matter with `init_lora_weights` only."""

INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the weights of the base as they are."""

PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?", re.ASCII)
"""A key of `rank_pattern` or `alpha_pattern` that is a name, or the end of one; peft takes it for a regular expression.
"""


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a tensor: `scale` · left · right."""

    left: Tensor  # [rows, rank]
    right: Tensor  # [rank, columns]
    scale: float


@dataclass(frozen=True)
class LoraWeights:
    """Changes of an adapter by the names of the base's tensors, without the prefixes that `read_weights` removes."""

    added: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    """Tensors in place of those of the base (`modules_to_save`, biases)."""


def read_adapter(folder: Path) -> LoraWeights:
    """Read the adapter in a folder. Raises UnsupportedModel if merging it is another arithmetic than plain LoRA's."""
    config, source = read_json(folder / ADAPTER_CONFIG, MAX_ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG)
    _require_plain(config, source)
    try:
        file = weights_at(folder, str(folder))
        if (kind := format_of(file)) == "index":
            raise NotACheckpoint(f"{file} is JSON; copy the adapter again")
        tensors = READERS[kind](file).tensors
    except OSError as error:
        raise NotACheckpoint(f"{folder} cannot be read: {os_reason(error)}; check its permissions") from error
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        _require_tensor(file, key, tensor)
        name = key.removeprefix("base_model.model.")
        module, dot, part = name.rpartition(".lora_")
        if dot and (factor := FACTORS.get(part)):
            factors.setdefault(module, {})[factor] = tensor
        elif dot or "lora_" in name or name == key:
            raise UnsupportedModel(f"{file} holds {legible(key)}, which is no part of plain LoRA; {merge_it(folder)}")
        else:
            whole[strip(name.replace(".base_layer.", "."))] = tensor
    added = {f"{strip(module)}.weight": _product(config, source, module, pair) for module, pair in factors.items()}
    if len(added) + len(whole) + sum(map(len, factors.values())) < len(tensors) + len(factors):
        raise CheckpointMismatch(f"{file} names a parameter twice; save the adapter again")
    return LoraWeights(added, whole)


FACTORS = {"A.weight": "A", "B.weight": "B", "embedding_A": "transposed A", "embedding_B": "transposed B"}


def _product(config: Mapping[str, object], source: str, module: str, pair: Mapping[str, Tensor]) -> LowRank:
    if pair.keys() not in ({"A", "B"}, {"transposed A", "transposed B"}):
        raise CheckpointMismatch(f"{source}: {legible(module)} has one factor of two; copy the adapter again")
    transposed = "A" not in pair
    first, second = (pair["transposed A"], pair["transposed B"]) if transposed else (pair["A"], pair["B"])
    rank = int(_of_module(config, source, "rank_pattern", "r", module))
    shapes = list(first.shape), list(second.shape)
    if first.dim() != 2 or second.dim() != 2 or not first.shape[0] == second.shape[1] == rank <= MAX_RANK:
        raise CheckpointMismatch(
            f"{source}: {legible(module)} has the rank {rank}, but factors of the shapes {shapes[0]} and {shapes[1]}; "
            "copy the configuration and the weights of one adapter"
        )
    alpha = _of_module(config, source, "alpha_pattern", "lora_alpha", module)
    scale = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(first.T, second.T, scale) if transposed else LowRank(second, first, scale)


def _of_module(config: Mapping[str, object], source: str, patterns: str, default: str, module: str) -> float:
    given = config.get(patterns) or {}
    if not isinstance(given, Mapping):
        raise InvalidModelConfig(f"{source}: {patterns} is no object; copy the file again")
    value = config.get(default, 8)  # peft's default of both
    for pattern, of_pattern in given.items():
        if not PATTERN.fullmatch(pattern):
            raise UnsupportedModel(
                f"{source}: {patterns} has {legible(pattern)!r}, a regular expression, and evalsvc reads names; write "
                "the names of the modules there"
            )
        name = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
        if module == name or (not pattern.startswith("^") and module.endswith(f".{name}")):
            value = of_pattern
            break
    least = 1 if default == "r" else float("-inf")
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e9 or not isfinite(value):
        raise InvalidModelConfig(f"{source}: {default} of {legible(module)} is no number that peft takes; correct it")
    return value


def _require_plain(config: Mapping[str, object], source: str) -> None:
    folder = Path(source).parent
    if (kind := config.get("peft_type")) != "LORA":
        raise UnsupportedModel(
            f"{source}: peft_type is {legible(str(kind))}, and evalsvc reads LORA; {merge_it(folder)}"
        )
    if (begun := config.get("init_lora_weights")) not in INITIALISATIONS:
        raise UnsupportedModel(
            f"{source}: init_lora_weights is {legible(str(begun))}, which changes the weights of the base; "
            f"{merge_it(folder)}"
        )
    known = COMPUTED.union(WITHOUT_EFFECT.split())
    if others := sorted(key for key, value in config.items() if value and key not in known):
        raise UnsupportedModel(f"{source} sets {some(others)}, which evalsvc does not compute; {merge_it(folder)}")


def _require_tensor(file: Path, key: str, tensor: Tensor) -> None:
    if not is_plain(tensor) or not tensor.numel():
        raise CheckpointMismatch(f"{file}: {legible(key)} is no plain floating-point tensor; save the adapter again")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointMismatch(f"{file}: {legible(key)} is larger than its data; save the adapter again")
    if not is_finite(tensor):
        raise NonFinite(f"{file} has NaN or infinity in {legible(key)}; the run has diverged by this step")
