"""Loading a checkpoint as a model that is ready to run, with errors that say why loading fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalsvc.checkpoints.tensors import DTYPES, copied, is_finite
from evalsvc.checkpoints.weights import read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite, UnknownName
from evalsvc.families.reading import resolve_config
from evalsvc.models.file_tensors import INV_FREQ, matched, open_lm_frequencies, values
from evalsvc.models.rotation import inv_freq_table
from evalsvc.models.transformer import INV_FREQ_DTYPES, Transformer
from evalsvc.spec.model_config import ModelConfig

SAME_FREQUENCY = 5e-7
"""Relative difference up to which two frequencies are equal: four units in the last place of float32, since devices
compute powers differently. At position 2,048 the difference is a thousandth of a radian.
"""


def load_model(
    path: str | Path,
    config: str | Mapping[str, Any] | ModelConfig | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> Transformer:
    """Return the model in `path`, in eval mode and without gradients, as one copy of the weights on `device`.

    The rotary frequencies are those of the file, where it saves them; see `saved_frequencies`.

    Args:
        config: a registered open_lm name, the path of a model JSON or a Hugging Face `config.json`, its fields, or None
            for the JSON next to the checkpoint.
    """
    path = Path(path)
    weights = read_weights(path)
    if not isinstance(config, ModelConfig):
        config = resolve_config(config, path)
    model = empty_model(config, dtype, rotary_inv_freq_dtype)
    tensors = matched(path, config, weights, model)
    if (saved := saved_frequencies(path, config, weights.tensors)) is not None:
        model.use_frequencies(saved)
    del weights  # `tensors` then holds the last reference to each tensor
    return filled(model, path, values(tensors), dtype, device)


def empty_model(config: ModelConfig, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
    """Return a model without values, for `filled`. Raises UnknownName for an unknown dtype."""
    if dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    with torch.device("meta"):
        return Transformer(config, rotary_inv_freq_dtype)


def filled(
    model: Transformer, name: Path | str, tensors: Iterable[tuple[str, Tensor]], dtype: str, device: str
) -> Transformer:
    """Fill `model` with copies of `tensors`, taken one at a time. Raises NonFinite with `name` in the message."""
    model.load_state_dict(copied(name, tensors, DTYPES[dtype], device), strict=False, assign=True)
    model.tie_weights()
    return model.to(device).requires_grad_(False).eval()


# rotary frequencies


def saved_frequencies(
    path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]
) -> Tensor | None:  # [head_dim / 2] float32
    """Return the rotary frequencies of a file that differ from open_lm's table; None: those of the configuration.

    open_lm computes with the saved values on every GPU. Values that equal the table in float32, or its rounding to
    bfloat16 or float16, add nothing to the configuration.
    """
    by_layer = open_lm_frequencies(config, tensors)
    saved = {name: frequencies for name, frequencies in by_layer.items() if frequencies is not None}
    if all(_is_table(frequencies) for frequencies in saved.values()):
        return None
    if broken := [name for name, frequencies in saved.items() if not is_finite(frequencies)]:
        raise NonFinite(f"{path} has NaN or infinity in {broken[0]}; write the model's rotary frequencies there")
    first, *others = by_layer
    if first not in saved or any(
        name not in saved or not same_frequencies(saved[name], saved[first]) for name in others
    ):
        raise CheckpointMismatch(
            f"{path} saves rotary frequencies that are neither open_lm's table nor equal in all layers; "
            f"write the model's frequencies into layers.N{INV_FREQ} of all {config.n_layers} layers, or into none for "
            "the table"
        )
    return saved[first]


def same_frequencies(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two results of `saved_frequencies` give the same rotation."""
    if first is None or second is None:
        return first is second
    return torch.allclose(first, second, rtol=SAME_FREQUENCY, atol=0)


def _is_table(saved: Tensor) -> bool:
    table = inv_freq_table(2 * len(saved))
    low, high = table * (1 - SAME_FREQUENCY), table * (1 + SAME_FREQUENCY)
    # Rounding keeps order: values between two bounds stay between the bounds when all are rounded.
    rounded = ((low.to(dtype).float(), high.to(dtype).float()) for dtype in INV_FREQ_DTYPES.values())
    return any(bool(((least <= saved) & (saved <= most)).all()) for least, most in rounded)
