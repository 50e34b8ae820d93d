"""Loading a checkpoint as a model that is ready to run, with errors that say why loading fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.weights import DTYPES, Weights, copied, is_finite, is_plain, listed, read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite, UnknownName
from evalsvc.models.layer import LayerNorm, RMSNorm
from evalsvc.models.open_lm import INV_FREQ_DTYPES, Transformer, inv_freq_table
from evalsvc.spec.model_config import ModelConfig, registered_models, resolve_config

INV_FREQ = ".attention.pos_embed.inv_freq"
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

    The rotary frequencies are those of the file; see `saved_frequencies`.

    Args:
        config: a registered open_lm name, the path of a model JSON, its fields, or None for the JSON next to the
            checkpoint.

    Raises:
        CheckpointError: as `resolve_config` and `read_weights`.
        CheckpointMismatch: keys or shapes differ from the configuration, or layers have different rotary frequencies.
        NonFinite: a weight or frequency is NaN or infinite.
        UnknownName: an unknown dtype.
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
    return filled(model, path, tensors, dtype, device)


def empty_model(config: ModelConfig, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
    """Return a model without values, for `filled`. Raises UnknownName for an unknown dtype."""
    if dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    with torch.device("meta"):
        return Transformer(config, rotary_inv_freq_dtype)


def filled(model: Transformer, name: Path | str, tensors: dict[str, Tensor], dtype: str, device: str) -> Transformer:
    """Fill `model` with copies of `tensors`, which is empty afterwards. Raises NonFinite with `name` in the message."""
    model.load_state_dict(copied(name, tensors, DTYPES[dtype], device), strict=False, assign=True)
    model.tie_weights()
    return model.to(device).requires_grad_(False).eval()


def matched(path: Path, config: ModelConfig, weights: Weights, model: Transformer) -> dict[str, Tensor]:
    """Return the file's tensors under the model's names, each exactly once. Raises CheckpointMismatch."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = expected | _inv_freq_shapes(config)
    tensors, pairs = _one_name_each(config, weights.tensors)
    shapes_in_file = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in shapes_in_file if name in known and shapes_in_file[name] != known[name]]
    problems = listed("missing", (name for name in expected if name not in shapes_in_file))
    problems += listed("unexpected", (name for name in shapes_in_file if name not in known))
    shapes = (f"{name} {list(shapes_in_file[name])} instead of {list(known[name])}" for name in wrong)
    problems += listed("wrongly shaped", shapes)
    problems += listed(
        "no plain floating-point tensor", (name for name in shapes_in_file if not is_plain(tensors[name]))
    )
    # Compare values last: comparing reads the data, which is worthwhile only when all shapes are right.
    problems = problems or listed("saved under two names with different values", _unequal(pairs))
    if problems:
        raise CheckpointMismatch(_mismatch(path, config, weights, problems))
    tied = {"output.weight"} if config.weight_tying else set()
    return {name: tensors[name] for name in expected if name not in tied}


def _inv_freq_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of open_lm's saved rotary buffers, the only sign of the number of heads in a file."""
    if config.positional_embedding_type not in ("rotary", "head_rotary"):
        return {}
    return {f"layers.{layer}{INV_FREQ}": (config.head_dim // 2,) for layer in range(config.n_layers)}


def _one_name_each(
    config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[tuple[str, Tensor, Tensor]]]:
    """Return `tensors` by the model's names, and the pairs that the file has under both of open_lm's names."""
    renamed = dict(tensors)
    pairs = []
    for name, other in _twins(config):
        if name in tensors and other in tensors:
            pairs.append((f"{name} and {other}", tensors[name], tensors[other]))
        if other in renamed:
            renamed.setdefault(name, renamed.pop(other))
    if config.weight_tying and "tok_embeddings.weight" in renamed:
        renamed["output.weight"] = renamed["tok_embeddings.weight"]
    return renamed, pairs


def _unequal(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> list[str]:
    # NaN counts as equal to NaN: NaN has its own error later.
    return [
        names
        for names, first, second in pairs
        if first.shape != second.shape
        or first.dtype != second.dtype
        or not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
    ]


def _twins(config: ModelConfig) -> Iterator[tuple[str, str]]:
    if config.weight_tying:
        yield "tok_embeddings.weight", "output.weight"
    if config.ffn_type == "gelu":
        for layer in range(config.n_layers):
            yield f"layers.{layer}.feed_forward.0.weight", f"layers.{layer}._ff_w1.weight"
            yield f"layers.{layer}.feed_forward.2.weight", f"layers.{layer}._ff_w2.weight"


# rotary frequencies


def saved_frequencies(
    path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]
) -> Tensor | None:  # [head_dim / 2] float32
    """Return the rotary frequencies of a file that differ from open_lm's table; None means the table.

    open_lm computes with the saved values on every GPU. Values that equal the table in float32, or its rounding to
    bfloat16 or float16, add nothing to the configuration.

    Raises:
        CheckpointMismatch: the layers do not all save the same frequencies.
        NonFinite: a frequency is NaN or infinite.
    """
    if config.positional_embedding_type != "rotary":
        return None  # head_rotary rotates queries and keys alike, so its frequencies have no effect
    shapes = _inv_freq_shapes(config)
    usable = {
        name: tensors[name]
        for name, shape in shapes.items()
        if name in tensors
        and tuple(tensors[name].shape) == shape
        and is_plain(tensors[name])  # `matched` reports any other
    }
    saved = {name: tensor.to(torch.float32, copy=True) for name, tensor in usable.items()}
    if all(_is_table(frequencies) for frequencies in saved.values()):
        return None
    if broken := [name for name, frequencies in saved.items() if not is_finite(frequencies)]:
        raise NonFinite(f"{path} has NaN or infinity in {broken[0]}; write the model's rotary frequencies there")
    first, *others = shapes
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


# what a mismatch says


def _mismatch(path: Path, config: ModelConfig, weights: Weights, problems: list[str]) -> str:
    given = f"hidden_dim {config.hidden_dim}, n_layers {config.n_layers}, vocab_size {config.vocab_size}"
    parts = [f"{path} ({weights.format}) does not match the model configuration ({given})", *problems]
    shape = _shape_of(weights.tensors)
    if not shape:
        parts.append("the file holds no tok_embeddings.weight [vocab_size, hidden_dim]: it is not an open_lm model")
        return "; ".join(parts)
    parts.append("the file holds " + ", ".join(f"{key} {value}" for key, value in shape.items()))
    if shape["vocab_size"] != config.vocab_size:
        relation = "smaller" if config.vocab_size < shape["vocab_size"] else "larger"
        parts.append(f"vocab_size {config.vocab_size} is {relation} than its {shape['vocab_size']} rows: correct it")
    parts.append(f"the nearest registered model is {_nearest(shape)}")
    return "; ".join(parts)


def _shape_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return hidden_dim, n_layers, vocab_size, and head_dim where known; empty if the table is missing."""
    table = tensors.get("tok_embeddings.weight", tensors.get("output.weight"))
    if table is None or table.dim() != 2:
        return {}
    indices = {key.split(".")[1] for key in tensors if key.startswith("layers.")}
    shape = {"hidden_dim": table.shape[1], "n_layers": len(indices), "vocab_size": table.shape[0]}
    buffers = [tensor for key, tensor in tensors.items() if key.endswith(INV_FREQ)]
    return shape | ({"head_dim": 2 * buffers[0].numel()} if buffers else {})


def _nearest(shape: Mapping[str, int]) -> str:
    """Return the registered name with the nearest shape. The vocabulary does not count, since models are widened."""

    def distance(fields: Mapping[str, int]) -> float:
        head_dim = fields["hidden_dim"] // fields["n_heads"]
        total = sum(abs(math.log(fields[key] / max(shape[key], 1))) for key in ("hidden_dim", "n_layers"))
        return total + (0.1 if head_dim != shape.get("head_dim", head_dim) else 0.0)

    models = registered_models()
    name = min(models, key=lambda candidate: distance(models[candidate]))
    fields = models[name]
    return f"{name} (hidden_dim {fields['hidden_dim']}, n_layers {fields['n_layers']}, n_heads {fields['n_heads']})"


# why logits are NaN


def find_nonfinite(
    model: Transformer,
    ids: Tensor,  # [B, T] int64
) -> str:
    """Return the first part, in the order of the forward pass, that computes NaN or infinity for `ids`.

    Names are those of the model ("layers.2.attention"); "output" is the head; "" means that everything is finite. A sum
    of two finite parts that overflows is reported as the next norm.
    """
    first: list[str] = []

    def note(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not first and not bool(torch.isfinite(output).all()):
            first.append(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Embedding, nn.Linear, LayerNorm, RMSNorm)):
                part = ".".join(name.split(".")[:3])  # part of a layer: attention, feed_forward or a norm
                hooks.enter_context(module.register_forward_hook(partial(note, part)))
        note("output", model, None, model(ids))
    return first[0] if first else ""


def nonfinite_cause(
    model: Transformer,
    ids: Tensor,  # [B, T] int64
) -> str:
    """Return the origin of NaN or infinity for `ids` and a remedy, as the end of an error message."""
    part = find_nonfinite(model, ids)
    where = f"the first part of the model with NaN or infinity is {part}" if part else "each part alone is finite"
    dtype = str(model.tok_embeddings.weight.dtype).removeprefix("torch.")
    advice = "the run has diverged by this step" if dtype == "float32" else f"or {dtype} is too narrow: try float32"
    return f"{where}; {advice}"
