"""Loading a checkpoint as a model of the package transformers.

The package gets a checked configuration and the tensors, never a path: it opens no file, runs no code of the
checkpoint, and does not reach the network.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as package_log

from evalsvc.checkpoints.network_guard import without_network
from evalsvc.checkpoints.tensors import DTYPES, copied, is_plain, listed
from evalsvc.checkpoints.weights import Weights, read_weights
from evalsvc.errors import (
    CheckpointMismatch,
    InvalidModelConfig,
    InvalidRequest,
    MissingPackage,
    NotACheckpoint,
    UnknownName,
    UnsupportedModel,
    show_name,
)
from evalsvc.families.reading import resolve_config
from evalsvc.models.padded_model import CacheKind
from evalsvc.models.transformers_model import TransformersModel
from evalsvc.spec.model_config import OPEN_LM, TRANSFORMERS, ModelConfig

OLDEST = 5
"""Oldest major version of the package whose ways of loading and caching are used here."""

SAFE = ("safetensors", "sharded safetensors")
"""Formats of weights that are read for the package."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest difference of hidden states between two ways of computing, relative to their largest value."""

PROBE_IDS, PADDING, PROMPT = 12, 3, 6
"""Numbers of ids, of padding, and of ids read before single steps, in the trial of a cache."""


def load_transformers(
    path: str | Path,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    rotary_inv_freq_dtype: str = "auto",
) -> TransformersModel:
    """Return the model in `path`, in eval mode and without gradients: also a model of a family, in its own folder.

    The package computes the rotary frequencies, in float32.
    """
    if rotary_inv_freq_dtype not in ("auto", "float32"):
        # Protocols have the parameter: numbers of rounded and of exact frequencies would be one series.
        raise InvalidRequest(
            f"rotary_inv_freq_dtype is {rotary_inv_freq_dtype}, and the package transformers computes rotary "
            "frequencies in float32; leave rotary_inv_freq_dtype out, or give a model of a family"
        )
    path = Path(path)
    if dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    if config.family == OPEN_LM:
        raise UnsupportedModel(
            f"{path} is in open_lm's own layout, which the package transformers does not read; choose the engine "
            "open_lm"
        )
    # Of a model of a family, the package reads the folder's `config.json`.
    read = config if config.family == TRANSFORMERS else resolve_config({"family": TRANSFORMERS}, path)
    settings = json.loads(read.transformers_config or "{}")
    if int(transformers.__version__.partition(".")[0]) < OLDEST:
        raise MissingPackage(
            f"model 'transformers' needs transformers {OLDEST} or later, and {transformers.__version__} is installed; "
            "run: pip install --upgrade transformers"
        )
    weights = read_weights(path)
    if weights.format not in SAFE:
        raise NotACheckpoint(f"{path} is a {weights.format}; save the model as safetensors, by `save_pretrained`")
    if config.n_layers > len(weights.tensors):
        raise CheckpointMismatch(
            f"{path} has {len(weights.tensors):,} tensors and its config.json describes a model of {config.n_layers:,} "
            "layers; correct config.json, or save the whole model"
        )
    with without_network(), _quiet():
        empty = _empty(path, settings)
        _require_room(path, empty, weights)
        tensors = _plain(path, empty, weights)
        del weights
        module = _filled(path, empty, copied(path, tensors.items(), DTYPES[dtype], device), DTYPES[dtype])
        cast(nn.Module, module).to(device).requires_grad_(False).eval()
        return _tried(config, module)


def _plain(path: Path, module: PreTrainedModel, weights: Weights) -> dict[str, Tensor]:
    """Return the floating-point tensors. Others are buffers of older releases, unless a parameter has the name."""
    tensors = {name: tensor for name, tensor in weights.tensors.items() if is_plain(tensor)}
    parameters = {name for name, _ in module.named_parameters()}
    others = weights.tensors.keys() - tensors.keys()
    quantised = [name for name in others if name in parameters or f"{module.base_model_prefix}.{name}" in parameters]
    if quantised:
        names = listed("parameters that are no plain floating-point numbers", sorted(quantised))
        raise CheckpointMismatch(
            f"{path} has {names[0]}; save the model without quantisation, in float32, bfloat16 or float16"
        )
    return tensors


def _empty(path: Path, settings: Mapping[str, Any]) -> PreTrainedModel:
    """Build the model without values. Raises UnsupportedModel and InvalidModelConfig."""
    kind = str(settings.get("model_type", ""))
    try:
        config = AutoConfig.for_model(**settings)
    except MemoryError:
        raise
    except Exception as error:  # each model checks its configuration in its own way
        raise _refused(path, kind, error) from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} has no causal language model of the model_type "
            f"{show_name(kind)}; evaluate a decoder-only language model"
        )
    try:
        with torch.device("meta"):
            build: Any = partial(AutoModelForCausalLM.from_config, config, trust_remote_code=False)
            # The file's own choice of attention is dropped before; torch's is taken where the model has it.
            try:
                module = build(attn_implementation="sdpa")
            except ValueError:
                module = build(attn_implementation="eager")
            return cast(PreTrainedModel, module)
    except MemoryError:
        raise
    except Exception as error:
        raise _refused(path, kind, error) from None


def _refused(path: Path, kind: str, error: Exception) -> InvalidModelConfig:
    # The package's message would quote the file.
    return InvalidModelConfig(
        f"transformers {transformers.__version__} refuses the configuration of {path} for the model_type "
        f"{show_name(kind)} ({type(error).__name__}); correct its config.json"
    )


def _require_room(path: Path, module: PreTrainedModel, weights: Weights) -> None:
    """Refuse a configuration that would need memory for more values than the file has."""
    wanted = sum(parameter.numel() for parameter in set(module.parameters()))
    actual = sum(tensor.numel() for tensor in weights.tensors.values())
    if wanted > actual:
        raise CheckpointMismatch(
            f"{path} has {actual:,} values and its config.json describes a model of {wanted:,}; correct the sizes "
            "(vocab_size counts the rows of a widened table), or save the whole model"
        )


def _filled(path: Path, empty: PreTrainedModel, tensors: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    try:
        load: Any = type(empty).from_pretrained
        module, info = load(
            None,
            config=empty.config,
            state_dict=tensors,
            dtype=dtype,
            attn_implementation=empty.config._attn_implementation,
            local_files_only=True,
            # Without it, the package raises an error that does not name the tensors. They are refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each model converts its weights in its own way
        # The package's message would quote the file, or refer to a report that is suppressed here.
        raise CheckpointMismatch(
            f"{path} does not match its config.json: transformers {transformers.__version__} cannot fill the model "
            f"with the weights ({type(error).__name__}); correct config.json, or save the model with `save_pretrained`"
        ) from None
    problems = listed("missing", sorted(info["missing_keys"]))
    problems += listed("unexpected", sorted(info["unexpected_keys"]))
    wrong = (f"{name} {list(shape)} instead of {list(wanted)}" for name, shape, wanted in info["mismatched_keys"])
    problems += listed("wrongly shaped", sorted(wrong))
    if problems:
        raise CheckpointMismatch(
            f"{path} does not match its config.json: {'; '.join(problems)}; correct config.json, or save the model "
            "with `save_pretrained`"
        )
    loaded: PreTrainedModel = module
    return loaded


# the trial of a cache


def _tried(config: ModelConfig, module: PreTrainedModel) -> TransformersModel:
    """Return the model with the first cache that changes no number: not every model of the package has every cache.

    Raises UnsupportedModel.
    """
    failures = []
    # The flag says whether the module was written for a static cache. Without it, numbers may be right up to a length.
    kinds: list[CacheKind] = ["static", "dynamic"] if module._can_compile_fullgraph else ["dynamic"]
    for kind in kinds:
        model = TransformersModel(config, module, kind)
        try:
            difference = _difference_of(model)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a cache that a model does not have fails in many ways
            failures.append(f"{kind}: {type(error).__name__}")
            continue
        if difference <= TOLERANCE[model.dtype]:
            return model
        failures.append(f"{kind}: differs by {difference:.1g}")
    raise UnsupportedModel(
        f"{type(module).__name__} computes other numbers for padded prompts with a cache than for whole sequences "
        f"({', '.join(failures)}), so that results would depend on batches; evaluate another kind of model"
    )


@torch.inference_mode()
def _difference_of(model: TransformersModel) -> float:
    """Return the largest difference of the ways of computing, relative to the largest value."""
    ids = torch.arange(2 * PROBE_IDS, device=model.device).view(2, -1) % model.config.vocab_size
    whole = model.logits(ids)
    hidden = model.hidden(ids)
    few = slice(0, min(3, model.config.vocab_size))
    pairs = [
        (model.head(hidden.flatten(0, 1)).view(*ids.shape, -1), whole),
        (model.head(hidden[:, -1], few), whole[:, -1, few]),
        (_cached(model, ids), hidden),
    ]
    return max(_difference(*pair) for pair in pairs)


def _cached(model: TransformersModel, ids: Tensor) -> Tensor:  # [B, T, D]
    """Compute hidden states after padding on the left, a prompt first and then token by token."""
    batch, length = ids.shape
    padded = torch.cat((ids[:, :1].expand(-1, PADDING), ids), dim=1)
    mask = torch.arange(PADDING + length, device=ids.device).expand(batch, -1) >= PADDING
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache(PADDING + length)
    stops = [PADDING + PROMPT, *range(PADDING + PROMPT + 1, PADDING + length + 1)]
    starts = [0, *stops]
    parts = [
        model.hidden(padded[:, start:stop], mask=mask[:, :stop], positions=positions[:, start:stop], cache=cache)
        for start, stop in zip(starts, stops, strict=False)
    ]
    return torch.cat(parts, dim=1)[:, PADDING:]


def _difference(first: Tensor, second: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinite if the shapes differ."""
    if first.shape != second.shape:
        return math.inf
    if not bool(second.isfinite().all()):
        return 0.0  # the task that computes NaN names the part of the model at fault
    return float((first.double() - second.double()).abs().max() / second.double().abs().max().clamp(min=1e-30))


@contextmanager
def _quiet() -> Iterator[None]:
    before, bars = package_log.get_verbosity(), package_log.is_progress_bar_enabled()
    package_log.set_verbosity(logging.CRITICAL)
    package_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        package_log.set_verbosity(before)
        if bars:
            package_log.enable_progress_bar()  # type: ignore[no-untyped-call]
