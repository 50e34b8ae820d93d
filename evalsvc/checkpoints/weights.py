"""Safe reading of weights from the files of training runs and conversions.

Used for every kind of network: language models, image decoders and feature extractors.

The format of a file is determined by its content, never by its name. Nothing in a file is executed: pickles go through
`torch.load(weights_only=True)` with numpy's scalars as the only addition, and objects of other classes, such as a
training's options, are left out. Where the format allows, tensors are views of the memory-mapped file, so reading is
cheap until they are copied.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from evalsvc.checkpoints.distributed import read_models
from evalsvc.checkpoints.formats import (
    ADAPTER_FILES,
    METADATA,
    PART,
    SHARD,
    adapter,
    format_of,
    legible,
    names_in,
    parts_of,
    read_header,
    weight_map,
    weights_at,
)
from evalsvc.checkpoints.tensors import Pieces, some
from evalsvc.checkpoints.torch_file import ADVICE, PlainDtype, StandIn, check, damaged
from evalsvc.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    NotACheckpoint,
    UnsafeCheckpoint,
    os_reason,
)
from evalsvc.families.refused import refuse_tensors

PREFIXES = ("module.", "model.")  # of DDP and Hugging Face, in any order
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of a name that torch.compile, FSDP, and layers that recompute their activations add."""
AVERAGE = "ema"  # key of averaged weights
_LOADING = Lock()  # torch's list of allowed names is one for all threads


@dataclass(frozen=True)
class Weights:
    tensors: dict[str, Tensor]
    """Tensors by the module's parameter names, without wrappers' prefixes; possibly views of the mapped file."""
    format: str
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """Averaged weights that the file holds under the key `ema`, as LlamaGen's training does; empty if it has none."""


def read_weights(path: Path) -> Weights:
    """Read weights: of a file of open_lm, Lightning or another training loop, a bare state dict, safetensors, or a
    folder of Hugging Face, Meta, FSDP or DeepSpeed."""
    try:
        file = weights_at(path, str(path))
        if SHARD.fullmatch(file.name):
            return _read_shards(file.parent)
        if path.is_dir() and PART.fullmatch(file.name):
            return _joined(path, parts_of(names_in(path), str(path)), {})
        if file.name in ADAPTER_FILES:
            raise adapter(str(path))
        if file.name == METADATA:
            return _read_distributed(file.parent)
        return READERS[format_of(file)](file)
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFound(f"there is no checkpoint at {path}; correct the path") from error
    except OSError as error:
        raise NotACheckpoint(f"{path} cannot be read: {os_reason(error)}; check its permissions") from error


def _read_torch(path: Path) -> Weights:
    loaded = load_torch(path)
    content = _plain_dict(loaded)
    if loaded is StandIn or isinstance(loaded, StandIn):
        raise NotACheckpoint(f"{path} holds an object of a class, not tensors, {ADVICE}")
    if content is None:
        raise NotACheckpoint(f"{path} holds a {type(loaded).__name__}; a checkpoint is a dictionary of tensors")
    kind = "open_lm epoch" if "epoch" in content else "state_dict"
    kind = "Lightning checkpoint" if "pytorch-lightning_version" in content else kind
    kinds = {
        "state_dict": kind,
        "av_model_sd": "open_lm average",
        "model": "model of a training loop",
        "module": "model of DeepSpeed",
        AVERAGE: "average of a training loop",
    }
    average = _plain_dict(content.get(AVERAGE)) or {}  # or anything else, such as a decay rate
    is_average = bool(average) and all(isinstance(tensor, Tensor) for tensor in average.values())
    averaged = _weights(path, kinds[AVERAGE], average).tensors if is_average else {}
    for key, named in kinds.items():
        if (tensors := _plain_dict(content.get(key))) is not None:
            return replace(_weights(path, named, tensors), averaged=averaged)
    if isinstance(
        epoch := content.get("epoch"), int | np.integer
    ):  # optimizer_N.pt and stats_N.pt look like epoch_N.pt
        held = "the optimizer state" if "optimizer" in content else "the statistics"
        right = path.parent / f"epoch_{epoch}.pt"
        what = f"post {right} instead" if right.exists() else f"post that epoch's {right.name} instead"
        raise NotACheckpoint(f"{path} holds {held} of epoch {epoch} and no weights; {what}")
    return _weights(path, "bare state dict", content)


def _plain_dict(content: object) -> dict[object, object] | None:
    # A pickle could hide the methods of an OrderedDict behind attributes.
    return dict(dict.items(content)) if isinstance(content, dict) else None


def _read_safetensors(path: Path) -> Weights:
    read_header(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:  # its message quotes the file
        raise NotACheckpoint(f"{path} is damaged; copy or write it again") from error
    return _weights(path, "safetensors", tensors)


def _read_index(path: Path) -> Weights:
    mapping = {strip(tensor): name for tensor, name in weight_map(path.read_bytes(), path).items()}
    weights = _joined(path, sorted(set(mapping.values())), mapping)
    if absent := sorted(mapping.keys() - weights.tensors.keys()):
        raise CheckpointMismatch(
            f"{path} names {len(absent)} tensors that its files do not hold: {some(absent)}; copy the files again"
        )
    return weights


def _joined(path: Path, names: Sequence[str], mapping: Mapping[str, str]) -> Weights:
    """Read the parts of a model. `path` is their folder or, with the file of each tensor, their index."""
    tensors, formats = dict[str, Tensor](), set[str]()
    for name in names:
        shard = (path.parent if mapping else path) / name
        if not shard.is_file():
            raise NotACheckpoint(
                f"{path} names {legible(name)}, which is missing from the same folder; copy all {len(names)} files"
            )
        if (kind := format_of(shard)) == "index":  # it could name itself
            raise NotACheckpoint(f"{path} names {legible(name)}, which is an index too; correct the index")
        weights = READERS[kind](shard)
        part = weights.tensors
        formats.add(weights.format)
        if twice := sorted(tensors.keys() & part.keys()):
            raise CheckpointMismatch(
                f"{legible(twice[0])} is in two of the files that {path} names; remove it from {name}"
            )
        tensors |= part
        if moved := sorted(tensor for tensor in part if mapping.get(tensor, name) != name):
            raise CheckpointMismatch(
                f"{path} says that {legible(moved[0])} is in {legible(mapping[moved[0]])}, but it is in {name}; write "
                "the index again"
            )
    return Weights(tensors, f"sharded {' and '.join(sorted(formats))}")


def _read_shards(folder: Path) -> Weights:
    """Read Meta's parts of a model, with the number of the part before each name: `00.norm.weight`."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name)):
        format_of(file)
        part = _read_torch(file).tensors
        tensors |= {f"{file.name.split('.')[1]}.{name}": tensor for name, tensor in part.items()}
    return Weights(tensors, "model in Meta's parts")


def _read_distributed(folder: Path) -> Weights:
    """Read the model in a folder of torch.distributed.checkpoint. Its tensors are put together when they are used."""

    @cache
    def mapped(name: str) -> Tensor:  # [bytes of the file] uint8
        size = (folder / name).stat().st_size
        storage: Any = torch.UntypedStorage.from_file(str(folder / name), False, size)
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    kind = "torch.distributed.checkpoint"
    models = {
        model: _weights(folder, kind, {name: Pieces.of(folder, entry, mapped) for name, entry in entries.items()})
        for model, entries in read_models(folder).items()
    }
    average = models.pop(AVERAGE) if AVERAGE in models and len(models) == 2 else None
    if len(models) != 1:
        held = f"{len(models)} models, under {some(sorted(map(repr, models)))}" if models else "no model"
        raise NotACheckpoint(f"{folder} holds {held}; save the model to evaluate in a folder of its own")
    (weights,) = models.values()
    return weights if average is None else replace(weights, averaged=average.tensors)


READERS = {"safetensors": _read_safetensors, "torch": _read_torch, "index": _read_index}


def _weights(path: Path, kind: str, content: Mapping[object, object]) -> Weights:
    names = [str(name) for name in content]
    if any(".lora_A." in name for name in names) and path.name not in ADAPTER_FILES:
        raise adapter(str(path))
    refuse_tensors(str(path), names)
    # Drop everything that a pickle may have attached to the values, such as methods.
    tensors = {
        name: value if isinstance(value, Pieces) else Tensor.detach(value)
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if len(tensors) < len(content) or not content:
        other_names = [str(name) for name in content if name not in tensors]
        holds = f"other things than tensors: {some(other_names)}" if other_names else "nothing"
        raise NotACheckpoint(
            f"{path} ({kind}) holds {holds}; expected tensors by name, alone or in `state_dict`, `av_model_sd`, "
            "`model`, `module` or `ema`"
        )
    keys: dict[str, str] = {}
    for key in map(str, tensors):
        if (name := strip(key)) in keys:
            raise CheckpointMismatch(
                f"{path} holds both {legible(keys[name])} and {legible(key)}, which are one parameter without their "
                "prefixes; save one model only"
            )
        keys[name] = key
    return Weights(dict(zip(keys, tensors.values(), strict=True)), kind)


def strip(key: str) -> str:
    """Return the name of a parameter without the prefixes of wrappers."""
    # A loop, because a hostile name may repeat a prefix more often than functions may call themselves.
    key, start = WRAPPERS.sub("", key), 0
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix, start)), ""):
        start += len(prefix)
    return key[start:]


def load_torch(path: Path) -> object:
    """Load a file of torch.save. Tensors are views of the mapped file, or copies for a file before torch 1.6."""
    is_archive, inert, _ = check(path)
    allowed: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (PlainDtype, "numpy.dtype"),
        (_plain_scalar, "numpy.core.multiarray.scalar"),
        (_plain_scalar, "numpy._core.multiarray.scalar"),
        *((StandIn, name) for name in inert),
    ]
    try:
        with _LOADING, warnings.catch_warnings(action="ignore"):
            # A name that torch allows, such as torch.FloatTensor, would be the real class.
            if inert and (real := inert.difference(torch.serialization.get_unsafe_globals_in_checkpoint(path))):
                raise UnsafeCheckpoint(f"would run {min(real)} when it is opened")
            with torch.serialization.safe_globals(allowed):
                content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{path} {error.message}, {ADVICE}") from error
    except OSError:
        raise
    except Exception as error:  # a hostile or truncated file fails in any way, with a message that quotes the file
        raise damaged(path, error) from error
    return content


def _plain_scalar(dtype: object, data: object) -> np.generic:
    plain = np.dtype(dtype.kind).newbyteorder(dtype.order) if type(dtype) is PlainDtype else None
    if plain is None or not isinstance(data, bytes) or len(data) != plain.itemsize:
        raise UnsafeCheckpoint("would create a numpy value from something other than its bytes")
    scalar: np.generic = np.frombuffer(data, plain)[0]
    return scalar
