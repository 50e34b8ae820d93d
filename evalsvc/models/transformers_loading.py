"""Language model of the package transformers: a checkpoint of any `AutoModelForCausalLM` of the package.

The package gets a checked configuration and the tensors, never a path: it opens no file, runs no code of the
checkpoint, and does not reach the network. It computes everything, so a step is slower than with evalsvc's own
`Transformer`. A model is split at the input of its output table: `hidden` runs the part before, and `head` the rest,
with scales and caps of the logits. Prompts are padded, and keys and values are in the package's caches.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.utils import logging as package_log

from evalsvc.checkpoints.network_guard import without_network
from evalsvc.checkpoints.tensors import DTYPES, copied, is_plain, listed
from evalsvc.checkpoints.weights import Weights, read_weights
from evalsvc.errors import (
    CheckpointMismatch,
    InternalError,
    InvalidData,
    InvalidModelConfig,
    InvalidRequest,
    MissingPackage,
    NotACheckpoint,
    UnknownName,
    UnsupportedModel,
    show_name,
)
from evalsvc.families.reading import resolve_config
from evalsvc.models.language_model import CacheKind, PaddedModel
from evalsvc.models.rotation import last_position
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
    """Return the model in `path`, in eval mode and without gradients: also a model of a family, in its own folder."""
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
        wanted = sum(parameter.numel() for parameter in set(empty.parameters()))
        actual = sum(tensor.numel() for tensor in weights.tensors.values())
        if wanted > actual:  # the model would take memory for more values than the file has
            raise CheckpointMismatch(
                f"{path} has {actual:,} values and its config.json describes a model of {wanted:,}; correct the sizes "
                "(vocab_size counts the rows of a widened table), or save the whole model"
            )
        tensors = _plain(path, empty, weights)
        del weights
        module = _filled(path, empty, copied(path, tensors.items(), DTYPES[dtype], device), DTYPES[dtype])
        cast(nn.Module, module).to(device).requires_grad_(False).eval()
        return _tried(config, module)


def _plain(path: Path, module: PreTrainedModel, weights: Weights) -> dict[str, Tensor]:
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
    kind = show_name(str(settings.get("model_type", "")))
    try:
        config = AutoConfig.for_model(**settings)
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise UnsupportedModel(
                f"transformers {transformers.__version__} has no causal language model of the model_type {kind}; "
                "evaluate a decoder-only language model"
            )
        with torch.device("meta"):
            build: Any = partial(AutoModelForCausalLM.from_config, config, trust_remote_code=False)
            # The file's own choice of attention is dropped before; torch's is taken where the model has it.
            try:
                return cast(PreTrainedModel, build(attn_implementation="sdpa"))
            except ValueError:
                return cast(PreTrainedModel, build(attn_implementation="eager"))
    except (MemoryError, UnsupportedModel):
        raise
    except Exception as error:  # each model checks its configuration in its own way, and the message would quote it
        raise InvalidModelConfig(
            f"transformers {transformers.__version__} refuses the configuration of {path} for the model_type {kind} "
            f"({type(error).__name__}); correct its config.json"
        ) from None


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
    wrong = (f"{name} {list(shape)} instead of {list(wanted)}" for name, shape, wanted in info["mismatched_keys"])
    problems = listed("missing", sorted(info["missing_keys"])) + listed("unexpected", sorted(info["unexpected_keys"]))
    problems += listed("wrongly shaped", sorted(wrong))
    if problems:
        raise CheckpointMismatch(
            f"{path} does not match its config.json: {'; '.join(problems)}; correct config.json, or save the model "
            "with `save_pretrained`"
        )
    loaded: PreTrainedModel = module
    return loaded


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


def _tried(config: ModelConfig, module: PreTrainedModel) -> TransformersModel:
    """Return the model with the first cache that changes no number: not every model of the package has every cache."""
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
    ids = torch.arange(2 * PROBE_IDS, device=model.device).view(2, -1) % model.config.vocab_size
    whole = model.logits(ids)
    hidden = model.hidden(ids)
    few = slice(0, min(3, model.config.vocab_size))
    pairs = [
        (model.head(hidden.flatten(0, 1)).view(*ids.shape, -1), whole),
        (model.head(hidden[:, -1], few), whole[:, -1, few]),
        (_hidden_by_cache(model, ids), hidden),
    ]
    return max(_difference(*pair) for pair in pairs)


def _hidden_by_cache(model: TransformersModel, ids: Tensor) -> Tensor:  # [B, T, D]
    batch, length = ids.shape
    padded = torch.cat((ids[:, :1].expand(-1, PADDING), ids), dim=1)
    mask = torch.arange(PADDING + length, device=ids.device).expand(batch, -1) >= PADDING
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache(PADDING + length)
    parts = [
        model.hidden(padded[:, start:stop], mask=mask[:, :stop], positions=positions[:, start:stop], cache=cache)
        for start, stop in pairwise((0, *range(PADDING + PROMPT, PADDING + length + 1)))
    ]
    return torch.cat(parts, dim=1)[:, PADDING:]


def _difference(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        return math.inf
    if not bool(second.isfinite().all()):
        return 0.0  # the task that computes NaN names the part of the model at fault
    return float((first.double() - second.double()).abs().max() / second.double().abs().max().clamp(min=1e-30))


class TransformersModel(PaddedModel):
    """Model of the package transformers, in eval mode and without gradients."""

    package = "transformers"

    def __init__(self, config: ModelConfig, module: PreTrainedModel, cache_kind: CacheKind) -> None:
        self.config, self.module, self.cache_kind = config, module, cache_kind
        self.saved_inv_freq: tuple[float, ...] = ()
        self._body: nn.Module = module.base_model
        embedding = module.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise UnsupportedModel(f"{type(module).__name__} has no table of ids; evaluate another kind of model")
        self._embedding = embedding
        self._head = _Head(module)
        parameters = signature(self._body.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # of newer and older releases
        tables = [part for part in self._body.modules() if isinstance(part, nn.Embedding) and part is not embedding]
        buffers = [buffer for buffer in self._body.buffers() if config.seq_len in buffer.shape]
        limits = _steady_positions(config, module) + ([config.seq_len] if tables or buffers else [])
        self._positions = min(limits, default=None)

    @property
    def input_table(self) -> Tensor:
        return self._embedding.weight.detach()

    @property
    def output_table(self) -> Tensor:
        return self._head.layer.weight.detach()

    def logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.module(input_ids=ids, use_cache=False).logits
        return logits.float()

    def hidden(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: FilledCache | None = None,
    ) -> Tensor:
        past, new = 0 if cache is None else cache.length, ids.shape[1]
        self.require_positions(last_position(positions, past + new, self._positions))
        arguments: dict[str, Any] = {}
        if mask is not None:
            if mask.shape != (len(ids), past + new):
                raise InternalError(f"mask is {list(mask.shape)}, expected {[len(ids), past + new]}")
            arguments["attention_mask"] = mask.long()
        if positions is not None and self._takes_positions:
            arguments["position_ids"] = positions.expand(len(ids), -1)
        if cache is not None:
            arguments[self._cache_name] = cache.cache
        hidden: Tensor = self._body(input_ids=ids, use_cache=cache is not None, return_dict=True, **arguments)[0]
        if cache is not None:
            cache.length += new
        return hidden

    def head(self, hidden: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        return self._head(hidden, self._head.of_rows(rows))

    def new_cache(self, capacity: int) -> FilledCache:
        if self.cache_kind == "static":
            return FilledCache(StaticCache(config=self.module.config, max_cache_len=capacity))
        return FilledCache(DynamicCache(config=self.module.config))

    def codes_head(self, image_ids: range | tuple[int, ...]) -> Mapping[str, Tensor]:
        if isinstance(image_ids, range):
            return self._head.of_rows(slice(image_ids.start, image_ids.stop))
        return self._head.of_rows(torch.tensor(image_ids, device=self.device))

    def codes_logits(self, hidden: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # [N, codes] float32
        return self._head(hidden, parameters)

    def require_positions(self, last: int) -> None:
        if self._positions is not None and last >= self._positions:
            raise InvalidData(
                f"position {last} is beyond the {self._positions} positions of the model's configuration, or beyond "
                "those within which its rotary frequencies do not depend on other rows; use shorter sequences, by "
                "`max_length` where the task has it"
            )

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, part) for name, part in self.module.named_modules() if not any(part.children()))


class FilledCache:
    def __init__(self, cache: Cache) -> None:
        self.cache, self.length = cache, 0

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(cast(torch.LongTensor, rows))


class _Head:
    """The part of a module after its body, for some rows of the output table."""

    def __init__(self, module: PreTrainedModel) -> None:
        layer = module.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not isinstance(layer, nn.Linear) or module.base_model is module:
            raise UnsupportedModel(
                f"{type(module).__name__} has no body followed by a linear output table, which evaluation needs; "
                "evaluate another kind of model"
            )
        self.layer = layer
        self.name = next(name for name, part in module.named_modules() if part is layer)
        # A copy of the module without its body, which returns the hidden states that it is given.
        self.tail = copy.copy(module)
        self.tail._modules = {**module._modules, module.base_model_prefix: _Given()}

    def of_rows(self, rows: Tensor | slice | None) -> dict[str, Tensor]:
        """Return the parameters of the output layer, by name, for some rows."""
        parameters = {"weight": self.layer.weight}
        if self.layer.bias is not None:
            parameters["bias"] = self.layer.bias
        return {
            f"{self.name}.{name}": parameter.detach() if rows is None else parameter.detach()[rows]
            for name, parameter in parameters.items()
        }

    def __call__(self, hidden: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # [N, D] → [N, rows] float32
        inputs = {"inputs_embeds": hidden[None], "use_cache": False, "return_dict": True}
        # The parameters are an argument: no call changes what another call sees.
        output = torch.func.functional_call(self.tail, dict(parameters), (), inputs, tie_weights=False)
        logits: Tensor = output.logits[0]
        return logits.float()


class _Given(nn.Module):
    """Body that returns the hidden states which it is given as embeddings."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "decoder", self)  # some heads call the decoder of the body

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)


class _Output(SimpleNamespace):
    """Output of a body: the hidden states as first item and as attribute, and None for all else."""

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None


def _steady_positions(config: ModelConfig, module: PreTrainedModel) -> list[int]:
    """Return numbers of positions beyond which the package chooses the frequencies of all rows by the longest row of
    the batch (`longrope`), or since the model was loaded (`dynamic`), so that a row's numbers depend on other rows."""
    parameters = getattr(module.config, "rope_parameters", None)
    longest = getattr(module.config, "max_position_embeddings", config.seq_len)
    limits = []
    for part in (parameters, *parameters.values()) if isinstance(parameters, Mapping) else ():
        kind = str(part.get("rope_type", "")) if isinstance(part, Mapping) else ""
        if kind == "longrope":
            limits.append(int(part.get("original_max_position_embeddings", longest)))
        elif "dynamic" in kind:
            limits.append(int(longest))
    return limits
