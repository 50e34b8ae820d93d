"""LoRA adapters as peft writes them: a folder of `adapter_config.json` and `adapter_model.safetensors` or `.bin`.

The tensors say which parameters an adapter changes, and the configuration by how much. A key of the configuration that
is not known to leave the numbers alone is refused where it is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalsvc.checkpoints.formats import (
    ADAPTER_CONFIG,
    MAX_ADAPTER_CONFIG,
    format_of,
    is_adapter,
    legible,
    merge_it,
    weights_at,
)
from evalsvc.checkpoints.reference import files_of
from evalsvc.checkpoints.tensors import Pieces, is_finite, is_plain, listed, some
from evalsvc.checkpoints.weights import READERS, Weights, read_weights, strip
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
MAX_MATCHES = 10_000_000
"""Maximum number of comparisons of a module's name with one in `alpha_pattern`."""

KNOWN = (
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config "
    "lora_alpha lora_dropout lora_ga_config megatron_core modules_to_save peft_type peft_version qalora_group_size r "
    "rank_pattern revision target_modules task_type use_rslora"
)
"""Keys of the configuration that are computed with, or that say what was trained, which the tensors say too, or how. In
all families peft takes `fan_in_fan_out` for false, and configurations of initialisations matter with
`init_lora_weights` only."""

PLAIN = {"peft_type": ("LORA",), "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal")}
"""Values that add products to the base. Other initialisations change the weights of the base too."""

FACTORS = {
    "A.weight": ("right", False),
    "B.weight": ("left", False),
    "embedding_A": ("left", True),
    "embedding_B": ("right", True),
}
"""Factor by the end of a tensor's name, and whether the tensor is the transposed factor."""


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


class Merged(Pieces):
    """A tensor of a base with the change by an adapter, in float64, computed whenever an operation needs the values."""

    _unchanged: Tensor
    _added: LowRank | None

    @staticmethod
    def with_change(base: Tensor, added: LowRank | None) -> Tensor:
        merged: Merged = Tensor._make_wrapper_subclass(Merged, base.shape, dtype=torch.float64)
        merged._unchanged, merged._added = base, added
        return merged

    def put_together(self) -> Tensor:
        whole, added = self._unchanged.to(torch.float64, copy=True), self._added
        return whole if added is None else whole.addmm_(added.left.double(), added.right.double(), alpha=added.scale)


def read_merged(base: Path, folder: Path) -> Weights:
    """Read the weights of a base with the adapter in a folder. The base's own weights are kept for the next adapter,
    if they are views of mapped files."""
    weights: Weights = kept("weights", base, partial(read_weights, base))
    if any(isinstance(tensor, Pieces) or tensor.untyped_storage().resizable() for tensor in weights.tensors.values()):
        _kept.pop("weights")
    lora, tensors = read_adapter(folder), dict(weights.tensors)
    shapes = {name: tensor.shape for name, tensor in lora.whole.items()}
    shapes |= {name: torch.Size((len(pair.left), pair.right.shape[1])) for name, pair in lora.added.items()}
    wrong = (
        f"{name} {list(shape)}"
        for name, shape in shapes.items()
        if name not in tensors or tensors[name].shape != shape or not is_plain(tensors[name])
    )
    if problems := listed("unknown or of another shape", wrong):
        raise CheckpointMismatch(
            f"{folder} changes tensors that the base {base} does not hold; {problems[0]}; give the adapter's own base, "
            f"or {merge_it(folder)}"
        )
    for name in shapes:
        tensors[name] = Merged.with_change(lora.whole.get(name, tensors[name]), lora.added.get(name))
    return replace(weights, tensors=tensors)


_kept: dict[str, tuple[object, Any]] = {}


def kept(kind: str, base: Path, make: Callable[[], Any]) -> Any:
    """Return what `make` makes of the files of an adapter's base; all steps of a run share the last value of a kind."""
    # The time of the change of an inode cannot be set, so that a file with another content has another state.
    files = ((file.relative_to(base), file.stat()) for file in files_of(base))
    states = [(name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files]
    if kind not in _kept or _kept[kind][0] != states:
        _kept.pop(kind, None)
        _kept[kind] = states, make()
    return _kept[kind][1]


def read_adapter(folder: Path) -> LoraWeights:
    """Read the adapter in a folder. Raises UnsupportedModel if merging it is another arithmetic than plain LoRA's."""
    if not is_adapter(folder):
        raise NotACheckpoint(f"{folder} is no folder of a LoRA adapter; give one with {ADAPTER_CONFIG}")
    source = folder / ADAPTER_CONFIG
    config: Mapping[str, Any] = read_json(source, MAX_ADAPTER_CONFIG)
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
        if not is_plain(tensor) or not 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
            raise CheckpointMismatch(f"{file}: {legible(key)} is no plain tensor with all its data; save it again")
        if not is_finite(tensor):
            raise NonFinite(f"{file} has NaN or infinity in {legible(key)}; the run has diverged by this step")
        name = key.removeprefix("base_model.model.")
        module, is_factor, part = name.rpartition(".lora_")
        if name == key or (is_factor and (part not in FACTORS or tensor.dim() != 2)):
            raise UnsupportedModel(f"{file} holds {legible(key)}, which is no part of plain LoRA; {merge_it(folder)}")
        target, entry = whole, strip(name.replace(".base_layer.", "."))
        if is_factor:
            entry, is_transposed = FACTORS[part]
            target, tensor = factors.setdefault(strip(module), {}), tensor.T if is_transposed else tensor
        if entry in target:
            raise CheckpointMismatch(f"{file} holds {legible(key)} under two names; save the adapter again")
        target[entry] = tensor
    alphas = [(f".{strip(pattern)}", alpha) for pattern, alpha in (config.get("alpha_pattern") or {}).items()]
    if len(alphas) * len(factors) > MAX_MATCHES:
        raise UnsupportedModel(f"{source}: alpha_pattern names {len(alphas):,} modules; {merge_it(folder)}")
    ranks = {rank for rank in (config.get("r", 8), *(config.get("rank_pattern") or {}).values()) if type(rank) is int}
    added: dict[str, LowRank] = {}
    for module, pair in factors.items():
        alpha = next((alpha for end, alpha in alphas if f".{module}".endswith(end)), config.get("lora_alpha", 8))
        if not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise InvalidModelConfig(f"{source}: lora_alpha of {legible(module)} is no number; correct it")
        rank = _rank_of(pair, ranks, f"{source}: {legible(module)}")
        scale = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
        added[f"{module}.weight"] = LowRank(pair["left"], pair["right"], scale)
    return LoraWeights(added, whole)


def _rank_of(pair: Mapping[str, Tensor], ranks: Collection[int], shown: str) -> int:
    if len(pair) < 2:
        raise CheckpointMismatch(f"{shown} has one factor of two; copy the adapter again")
    if (rank := len(pair["right"])) != pair["left"].shape[1] or rank not in ranks or rank > MAX_RANK:
        raise CheckpointMismatch(
            f"{shown} has factors of the shapes {list(pair['left'].shape)} and {list(pair['right'].shape)}, not the "
            "rank of its configuration; copy both files of one adapter"
        )
    return rank


def _require_plain(config: Mapping[str, Any], source: Path) -> None:
    for key, values in PLAIN.items():
        if (value := config.get(key)) not in values:
            raise UnsupportedModel(
                f"{source}: {key} is {legible(str(value))}, which is not plain LoRA; {merge_it(source.parent)}"
            )
    known = KNOWN.split()
    if others := sorted(key for key, value in config.items() if value and key not in known):
        raise UnsupportedModel(
            f"{source} sets {some(others)}, which evalsvc does not compute; {merge_it(source.parent)}"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.-]+", pattern) for pattern in patterns):
            raise UnsupportedModel(
                f"{source}: {key} is no object of names, and evalsvc reads no regular expressions; write the names of "
                "the modules there"
            )
