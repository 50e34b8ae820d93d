"""Virtual checkpoints: a model computed from several checkpoints by an expression.

Every expression is linear, so a tensor is the sum of its parents' tensors times their coefficients. Parents are opened
one after the other: memory holds the sums, which are one model in float32, and at most one parent's tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from evalsvc.checkpoints.expression import Expression, canonical, coefficients, leaves, part_of, require_parts
from evalsvc.checkpoints.tensors import emptied, is_finite
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite
from evalsvc.families.reading import require_one_model
from evalsvc.models.loading import empty_model, filled, matched, same_frequencies, saved_frequencies
from evalsvc.models.rotation import trained_inv_freq_dtype
from evalsvc.models.transformer import Transformer
from evalsvc.spec.model_config import ModelConfig

BLOCK = 1 << 18
"""Number of values in float64 at a time."""


def load_virtual(
    expression: Expression,
    parents: Mapping[str, Path],
    config: ModelConfig,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> Transformer:
    """Return the model of an expression, as `load_model` does. `parents` are its checkpoints by name.

    Products and sums are computed in float64 and kept in float32, or in float64 where that is `dtype`.
    """
    require_parts(expression, config.n_layers, config.weight_tying)
    model = empty_model(config, dtype, rotary_inv_freq_dtype)
    sums: dict[str, Tensor] = {}
    frequencies: dict[str, Tensor | None] = {}
    precise = torch.float64 if dtype == "float64" else torch.float32
    for parent, counts in _counting(expression, model.state_dict()):
        weights = read_weights(parents[parent])
        tensors = matched(parents[parent], config, weights, model)
        frequencies[parent] = saved_frequencies(parents[parent], config, weights.tensors)
        del weights
        for name in list(tensors):
            tensor = tensors.pop(name).value()
            if counts[name]:
                _require_finite(parents[parent], name, tensor)
                _add(sums, name, tensor, counts[name], precise)
    if (saved := _agreed_frequencies(frequencies)) is not None:
        model.use_frequencies(saved)
    return filled(model, canonical(expression), emptied(sums), dtype, device)


def virtual_frequencies(
    expression: Expression, parents: Mapping[str, Path], config: ModelConfig
) -> Tensor | None:  # [head_dim / 2] float32
    """Return the `saved_frequencies` of the parents that count. Raises CheckpointMismatch where parents differ."""
    names = empty_model(config, "float32", "auto").state_dict()
    counting = [parent for parent, _ in _counting(expression, names)]
    return _agreed_frequencies(
        {name: saved_frequencies(parents[name], config, read_weights(parents[name]).tensors) for name in counting}
    )


def _counting(expression: Expression, names: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
    shares = cache(lambda part: coefficients(expression, part))
    for parent in map(str, leaves(expression)):
        counts = {name: shares(part_of(name)).get(parent, 0.0) for name in names}
        if any(counts.values()):
            yield parent, counts


def _agreed_frequencies(frequencies: Mapping[str, Tensor | None]) -> Tensor | None:
    (first, expected), *others = frequencies.items()
    for name, actual in others:
        if not same_frequencies(expected, actual):
            left, right = (
                "open_lm's table" if saved is None else "those saved as inv_freq" for saved in (expected, actual)
            )
            raise CheckpointMismatch(
                f"{first} and {name} have different rotary frequencies: {left} and {right}; only checkpoints of one "
                "model can be combined"
            )
    return expected


def agreed_config(configs: Mapping[str, ModelConfig]) -> ModelConfig:
    """Return the configuration that all parents have, given by name. Raises CheckpointMismatch with the differences."""
    # The precision of a run's training matters only through the rotary frequencies.
    require_one_model(
        {
            name: {**config.model_dump(exclude={"precision"}), "rotary_inv_freq_dtype": trained_inv_freq_dtype(config)}
            for name, config in configs.items()
        }
    )
    return next(iter(configs.values()))


def _require_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not is_finite(tensor):
        raise NonFinite(
            f"{path} has NaN or infinity in {name}; the run has diverged by this step, leave the checkpoint out"
        )


def _add(sums: dict[str, Tensor], name: str, tensor: Tensor, share: float, dtype: torch.dtype) -> None:
    if share == 1 and name not in sums:
        sums[name] = tensor.to(dtype, copy=True)
        return
    total = sums.setdefault(name, torch.zeros(tensor.shape, dtype=dtype)).view(-1)
    values = tensor.reshape(-1)
    for begin in range(0, total.numel(), BLOCK):
        block = slice(begin, begin + BLOCK)
        total[block] = total[block].double() + share * values[block].double()
