"""Loading a checkpoint as a model that is ready to run, with errors that say why loading fails.

A virtual checkpoint is an expression of several checkpoints. Every expression is linear, so a tensor is the sum of its
parents' tensors times their coefficients. Parents are opened one after the other: memory holds the sums, which are one
model in float32, and at most one parent's tensors. A checkpoint with an adapter is one parent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalsvc.checkpoints.adapter import Merged, read_merged
from evalsvc.checkpoints.expression import (
    Expression,
    Leaf,
    Sum,
    canonical,
    coefficients,
    leaves,
    part_of,
    require_parts,
)
from evalsvc.checkpoints.formats import merge_it
from evalsvc.checkpoints.tensors import DTYPES, copied, emptied, is_finite, is_plain, joined, listed
from evalsvc.checkpoints.weights import Weights, read_weights
from evalsvc.errors import CheckpointMismatch, NonFinite, UnknownName, UnsupportedModel
from evalsvc.families.family import Source
from evalsvc.families.open_lm import registered_models
from evalsvc.families.reading import family_of, require_one_model, resolve_config
from evalsvc.models.rotation import INV_FREQ_DTYPES, inv_freq_table, trained_inv_freq_dtype
from evalsvc.models.transformer import Transformer
from evalsvc.spec.model_config import OPEN_LM, ModelConfig

INV_FREQ = ".attention.pos_embed.inv_freq"
TABLE = "tok_embeddings.weight"
LAYER = re.compile(r"(?:layers|blocks)\.([^.]*)")
BLOCK = 1 << 18
"""Number of values of a virtual checkpoint in float64 at a time."""

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

    `config` is a registered open_lm name, the path of a model JSON or a Hugging Face `config.json`, its fields, or None
    for the JSON next to the checkpoint. The rotary frequencies are those of the file, where it saves them.
    """
    path = Path(path)
    weights = read_weights(path)
    if not isinstance(config, ModelConfig):
        config = resolve_config(config, path)
    model = _empty(config, dtype, rotary_inv_freq_dtype)
    tensors = _matched(path, config, weights, model)
    if (saved := saved_frequencies(path, config, weights.tensors)) is not None:
        model.use_frequencies(saved)
    del weights  # `tensors` then holds the last reference to each tensor
    values = ((name, tensors.pop(name).value()) for name in list(tensors))
    return _filled(model, path, values, dtype, device)


def check_tensors(path: Path, config: ModelConfig, weights: Weights) -> int:
    """Return the number of the model's parameters. Raises CheckpointMismatch unless the tensors of the file fit."""
    return len(_matched(path, config, weights, _empty(config, "float32", "auto")))


def load_virtual(
    expression: Expression,
    parents: Mapping[str, Path],
    config: ModelConfig,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> Transformer:
    """Return the model of an expression, as `load_model` does. `parents` are its checkpoints and adapters by name.
    Products and sums are computed in float64 and kept in float32, or in float64 where that is `dtype`."""
    require_parts(expression, config.n_layers, config.weight_tying)
    model = _empty(config, dtype, rotary_inv_freq_dtype)
    sums: dict[str, Tensor] = {}
    frequencies: dict[str, Tensor | None] = {}
    precise = torch.float64 if dtype == "float64" else torch.float32
    for leaf, counts in _counting(expression, model.state_dict()):
        path, weights = read_leaf(leaf, parents)
        tensors = _matched(path, config, weights, model)
        if config.weight_tying and isinstance(tensors[TABLE].tensors[0], Merged):
            adapter = canonical(leaf)
            raise UnsupportedModel(f"{adapter} changes {TABLE}, one of two tables that are tied; {merge_it(adapter)}")
        frequencies[canonical(leaf)] = saved_frequencies(path, config, weights.tensors)
        del weights
        for name in list(tensors):
            tensor = tensors.pop(name).value()
            if counts[name]:
                if not is_finite(tensor):
                    raise NonFinite(
                        f"{path} has NaN or infinity in {name}; the run has diverged by this step, leave "
                        "the checkpoint out"
                    )
                _add(sums, name, tensor, counts[name], precise)
    if (saved := _agreed_frequencies(frequencies)) is not None:
        model.use_frequencies(saved)
    return _filled(model, canonical(expression), emptied(sums), dtype, device)


def read_leaf(leaf: Leaf | Sum, parents: Mapping[str, Path]) -> tuple[Path, Weights]:
    """Return the path and the weights of a checkpoint in an expression, with its adapter if it has one."""
    if isinstance(leaf, Sum):
        path = parents[str(leaf.first)]
        return path, read_merged(path, parents[str(leaf.adapter)])
    return parents[str(leaf)], read_weights(parents[str(leaf)])


def virtual_frequencies(
    expression: Expression, parents: Mapping[str, Path], config: ModelConfig
) -> Tensor | None:  # [head_dim / 2] float32
    """Return the `saved_frequencies` of the parents that count. Raises CheckpointMismatch where parents differ."""
    names = _empty(config, "float32", "auto").state_dict()

    def frequencies(leaf: Leaf | Sum) -> Tensor | None:
        path, weights = read_leaf(leaf, parents)
        return saved_frequencies(path, config, weights.tensors)

    return _agreed_frequencies({canonical(leaf): frequencies(leaf) for leaf, _ in _counting(expression, names)})


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


def _counting(expression: Expression, names: Iterable[str]) -> Iterator[tuple[Leaf | Sum, dict[str, float]]]:
    shares = cache(lambda part: coefficients(expression, part))
    for leaf in leaves(expression):
        counts = {name: shares(part_of(name)).get(canonical(leaf), 0.0) for name in names}
        if any(counts.values()):
            yield leaf, counts


def _agreed_frequencies(frequencies: Mapping[str, Tensor | None]) -> Tensor | None:
    (first, expected), *others = frequencies.items()
    for name, actual in others:
        if not _same_frequencies(expected, actual):
            table, stored = "open_lm's table", "those saved as inv_freq"
            left, right = (table if saved is None else stored for saved in (expected, actual))
            raise CheckpointMismatch(
                f"{first} and {name} have different rotary frequencies: {left} and {right}; only checkpoints of one "
                "model can be combined"
            )
    return expected


def _add(sums: dict[str, Tensor], name: str, tensor: Tensor, share: float, dtype: torch.dtype) -> None:
    if share == 1 and name not in sums:
        sums[name] = tensor.to(dtype, copy=True)
        return
    total = sums.setdefault(name, torch.zeros(tensor.shape, dtype=dtype)).view(-1)
    values = tensor.reshape(-1)
    for begin in range(0, total.numel(), BLOCK):
        block = slice(begin, begin + BLOCK)
        total[block] = total[block].double() + share * values[block].double()


def _empty(config: ModelConfig, dtype: str, rotary_inv_freq_dtype: str) -> Transformer:
    if dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    with torch.device("meta"):
        return Transformer(config, rotary_inv_freq_dtype)


def _filled(
    model: Transformer, name: Path | str, tensors: Iterable[tuple[str, Tensor]], dtype: str, device: str
) -> Transformer:
    model.load_state_dict(copied(name, tensors, DTYPES[dtype], device), strict=False, assign=True)
    model.tie_weights()
    model = model.to(device).requires_grad_(False).eval()
    model.fill_image_rows()
    return model


def saved_frequencies(
    path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]
) -> Tensor | None:  # [head_dim / 2] float32
    """Return the rotary frequencies of a file that differ from open_lm's table; None: those of the configuration.

    open_lm computes with the saved values on every GPU. Values that equal the table in float32, or its rounding to
    bfloat16 or float16, add nothing to the configuration. head_rotary turns queries and keys alike, so its frequencies
    have no effect.
    """
    shapes = _inv_freq_shapes(config) if config.positional_embedding_type == "rotary" else {}
    saved = {
        name: tensors[name].to(torch.float32, copy=True)
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) == shape and is_plain(tensors[name])
    }
    if all(_is_table(frequencies) for frequencies in saved.values()):
        return None
    if broken := [name for name, frequencies in saved.items() if not is_finite(frequencies)]:
        raise NonFinite(f"{path} has NaN or infinity in {broken[0]}; write the model's rotary frequencies there")
    first, *others = shapes
    if first not in saved or any(
        name not in saved or not _same_frequencies(saved[name], saved[first]) for name in others
    ):
        raise CheckpointMismatch(
            f"{path} saves rotary frequencies that are neither open_lm's table nor equal in all layers; "
            f"write the model's frequencies into layers.N{INV_FREQ} of all {config.n_layers} layers, or into none for "
            "the table"
        )
    return saved[first]


def _same_frequencies(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.allclose(first, second, rtol=SAME_FREQUENCY, atol=0)


def _is_table(saved: Tensor) -> bool:
    table = inv_freq_table(2 * len(saved))
    low, high = table * (1 - SAME_FREQUENCY), table * (1 + SAME_FREQUENCY)
    # Rounding keeps order: values between two bounds stay between the bounds when all are rounded.
    rounded = ((low.to(dtype).float(), high.to(dtype).float()) for dtype in INV_FREQ_DTYPES.values())
    return any(bool(((least <= saved) & (saved <= most)).all()) for least, most in rounded)


@dataclass(frozen=True, eq=False)
class Stored:
    """A parameter in a file, put together only when its value is needed."""

    tensors: tuple[Tensor, ...]
    source: Source

    def value(self) -> Tensor:
        """Return the parameter's value, a view of the mapped file where it is one tensor."""
        whole = joined(self.tensors)
        return whole if self.source.arrange is None else self.source.arrange(whole)


def _matched(path: Path, config: ModelConfig, weights: Weights, model: nn.Module) -> dict[str, Stored]:
    family = family_of(config)
    given = family.sources_in(config, {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()})
    tied = {"output.weight"} if config.weight_tying else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    sources = {name: given.get(name, Source((name,))) for name in shapes}
    expected = {
        name: shape
        for each, source in sources.items()
        for name, shape in zip(source.names, source.shapes or _rows_of(source, shapes[each]), strict=True)
    }
    known = expected | _inv_freq_shapes(config)
    tensors, pairs = _one_name_each(sources.values(), weights.tensors)
    shapes_in_file = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in shapes_in_file if name in known and shapes_in_file[name] != known[name]]
    surplus = (name for name in shapes_in_file if name not in known and not family.ignores(name))
    problems = listed("missing", (name for name in expected if name not in shapes_in_file))
    problems += listed("unexpected", surplus)
    wrongly = (f"{name} {list(shapes_in_file[name])} instead of {list(known[name])}" for name in wrong)
    problems += listed("wrongly shaped", wrongly)
    no_plain = (name for name in known if name in tensors and not is_plain(tensors[name]))
    problems += listed("no plain floating-point tensor", no_plain)
    # Compare values last: comparing reads the data, which is worthwhile only when all shapes are right.
    problems = problems or listed("saved under two names with different values", _unequal(pairs))
    if problems:
        raise CheckpointMismatch(_mismatch(path, config, weights, problems, sources[TABLE]))
    return {each: Stored(tuple(tensors[name] for name in source.names), source) for each, source in sources.items()}


def _rows_of(source: Source, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(rows, *shape[1:]) for rows in source.rows or shape[:1]]


def _inv_freq_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of open_lm's saved rotary buffers, the only sign of the number of heads in a file."""
    if config.family != OPEN_LM or config.positional_embedding_type not in ("rotary", "head_rotary"):
        return {}
    return {f"layers.{layer}{INV_FREQ}": (config.head_dim // 2,) for layer in range(config.n_layers)}


def _one_name_each(
    sources: Iterable[Source], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[tuple[str, Tensor, Tensor]]]:
    renamed = dict(tensors)
    pairs = []
    for source in sources:
        name = source.names[0]
        for other in source.aliases:
            if other not in tensors:
                continue
            if name in renamed:
                pairs.append((f"{name} and {other}", renamed[name], tensors[other]))
            renamed.setdefault(name, renamed.pop(other))
    return renamed, pairs


def _unequal(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> list[str]:
    # NaN counts as equal to NaN: NaN has its own error later.
    return [
        names
        for names, first, second in pairs
        if first.shape != second.shape
        or first.dtype != second.dtype
        or not is_plain(second)  # a sparse tensor of the same shape cannot be compared
        or not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
    ]


def _mismatch(path: Path, config: ModelConfig, weights: Weights, problems: list[str], table: Source) -> str:
    given = f"hidden_dim {config.hidden_dim}, n_layers {config.n_layers}, vocab_size {config.vocab_size}"
    parts = [f"{path} ({weights.format}) does not match the model configuration ({given})", *problems]
    shape = _shape_of(weights.tensors, table)
    if not shape:
        kind = "an open_lm" if config.family == OPEN_LM else f"a {config.family}"
        parts.append(f"the file holds no {table.names[0]} [vocab_size, hidden_dim]: it is not {kind} model")
        return "; ".join(parts)
    parts.append("the file holds " + ", ".join(f"{key} {value}" for key, value in shape.items()))
    rows = table.shapes[0][0] if table.shapes else config.vocab_size
    if shape["vocab_size"] != rows:
        relation = "smaller" if rows < shape["vocab_size"] else "larger"
        parts.append(f"vocab_size {rows} is {relation} than its {shape['vocab_size']} rows: correct it")
    if config.family == OPEN_LM:
        parts.append(f"the nearest registered model is {_nearest(shape)}")
    return "; ".join(parts)


def _shape_of(tensors: Mapping[str, Tensor], table: Source) -> dict[str, int]:
    names = (*table.names, *table.aliases, "output.weight")
    rows = next((tensors[name] for name in names if name in tensors), None)
    if rows is None or rows.dim() != 2:
        return {}
    indices = {match[1] for key in tensors if (match := LAYER.search(key))}
    shape = {"hidden_dim": rows.shape[1], "n_layers": len(indices), "vocab_size": rows.shape[0]}
    buffers = [tensor for key, tensor in tensors.items() if key.endswith(INV_FREQ)]
    return shape | ({"head_dim": 2 * buffers[0].numel()} if buffers else {})


def _nearest(shape: Mapping[str, int]) -> str:
    """Return the registered name with the nearest shape. The vocabulary does not count, since models are widened."""

    def distance(fields: Mapping[str, int]) -> float:
        head_dim = fields["hidden_dim"] // fields["n_heads"]
        total = sum(abs(log(fields[key] / max(shape[key], 1))) for key in ("hidden_dim", "n_layers"))
        return total + (0.1 if head_dim != shape.get("head_dim", head_dim) else 0.0)

    models = registered_models()
    name = min(models, key=lambda candidate: distance(models[candidate]))
    fields = models[name]
    return f"{name} (hidden_dim {fields['hidden_dim']}, n_layers {fields['n_layers']}, n_heads {fields['n_heads']})"
