"""Reading the weights out of whatever a training run or a conversion wrote, trusting none of it.

For every kind of network: language models, image decoders and feature extractors are all opened here.

What a file is, is told by its content, never by its name. Nothing in it is executed: pickles go through
`torch.load(weights_only=True)` with numpy's scalars as the only addition. Tensors are views of the memory-mapped file
where the format allows, so reading costs little until they are copied.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import safetensors
import torch
from torch import Tensor

from evalsvc.checkpoints import torch_file
from evalsvc.checkpoints.reference import sharded, weights_among
from evalsvc.checkpoints.safetensors_file import read_header
from evalsvc.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    NonFinite,
    NotACheckpoint,
    first_few,
    os_reason,
)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SHOWN = 5  # names of each kind in a message
MAX_INDEX = 50_000_000  # bytes
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP, torch.compile and Hugging Face, in any order
OPTIMIZER_KEYS = ("optimizer", "optimizer_states", "scaler")
VIEWS = 4
"""How often a file's bytes may be seen as tensors: tied weights are saved under two names, and each may be cast."""


@dataclass(frozen=True)
class Weights:
    tensors: dict[str, Tensor]
    """By the module's parameter names, without wrappers' prefixes; possibly views of the mapped file."""
    step: int | None
    """Optimiser steps, where the file says so."""
    epoch: int | None
    format: str
    """What the file was found to be, such as "open_lm epoch" or "safetensors"."""
    metadata: dict[str, object]
    """What else the file says: training loop's values, or safetensors' header."""


def read_weights(path: Path) -> Weights:
    """The weights in `path`: a file of open_lm or Lightning, a bare state dict, safetensors, or a Hugging Face folder.

    Raises CheckpointNotFound, NotACheckpoint, UnsafeCheckpoint, ShardedCheckpoint, and CheckpointMismatch where two
    keys become one without their prefixes.
    """
    try:
        if path.is_dir():
            return _read_file(path / weights_among({entry.name for entry in path.iterdir()}, str(path)))
        return _read_file(path)
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFound(f"there is no checkpoint at {path}") from error
    except OSError as error:
        raise NotACheckpoint(f"{path} cannot be read: {os_reason(error)}") from error


def _read_file(path: Path) -> Weights:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise NotACheckpoint(f"{path} is not a regular file; give a checkpoint file or a Hugging Face folder")
    if found.st_size == 0:
        raise NotACheckpoint(f"{path} is empty: was it still being written, or was the disk full?")
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix == ".distcp" and (path.parent / ".metadata").exists():
        raise sharded(str(path.parent))
    return _reader(path, head)(path)


def _reader(path: Path, head: bytes) -> Callable[[Path], Weights]:
    """The function that reads a file which begins with `head`."""
    if head.startswith((torch_file.ZIP, b"\x80")):
        return _read_torch
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return _read_safetensors
    if head.lstrip().startswith(b"{"):
        return _read_index
    if not head.strip(b"\0"):
        raise NotACheckpoint(
            f"{path} starts with zeros: an unfinished copy, or space that was only reserved; copy again"
        )
    is_text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)
    kind = "is text" if is_text else f"starts with {head[:8].hex(' ')}"
    raise NotACheckpoint(f"{path} {kind}; a checkpoint is a torch.save file (zip or pickle) or safetensors")


# torch.save


def _read_torch(path: Path) -> Weights:
    loaded = torch_file.load(path)
    content = _plain_dict(loaded)
    if content is None:
        raise NotACheckpoint(f"{path} holds a {type(loaded).__name__}; a checkpoint is a dictionary of tensors")
    kind = "open_lm epoch" if "epoch" in content else "state_dict"
    kind = "Lightning checkpoint" if "pytorch-lightning_version" in content else kind
    for key, named in (("state_dict", kind), ("av_model_sd", "open_lm average")):
        if (tensors := _plain_dict(content.get(key))) is not None:
            # Lightning's and older open_lm files have their optimizer, as large as the weights and nobody's metadata.
            left_out = {key, *OPTIMIZER_KEYS}
            return _weights(path, named, tensors, {str(k): v for k, v in content.items() if k not in left_out})
    if "epoch" in content:
        _refuse_companion(path, content)
    return _weights(path, "bare state dict", content, {})


def _plain_dict(content: object) -> dict[object, object] | None:
    """Without attributes: those that a pickle gives an OrderedDict stand before its methods. None: no dictionary."""
    return dict(dict.items(content)) if isinstance(content, dict) else None


def _refuse_companion(path: Path, content: Mapping[object, object]) -> NoReturn:
    """Say which file has the weights: optimizer_N.pt and stats_N.pt lie next to epoch_N.pt and look like it."""
    kind = "the optimizer state" if "optimizer" in content else "the statistics"
    weights = path.parent / f"epoch_{content['epoch']}.pt"
    what = f"post {weights} instead" if weights.exists() else f"post that epoch's {weights.name} instead"
    raise NotACheckpoint(f"{path} holds {kind} of epoch {content['epoch']} and no weights; {what}")


# safetensors


def _read_safetensors(path: Path) -> Weights:
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:  # whose words quote the file
        raise NotACheckpoint(f"{path} is damaged; copy or write it again") from error
    return _weights(path, "safetensors", tensors, metadata if isinstance(metadata, dict) else {})


# several files


def _read_index(path: Path) -> Weights:
    """Read the files next to a Hugging Face index, which says which tensor is in which file."""
    shards = _shard_names(path)
    tensors: dict[str, Tensor] = {}
    for name in shards:
        shard = path.parent / name
        if not shard.is_file():
            raise NotACheckpoint(f"{path} names {name}, which is missing beside it; copy all {len(shards)} files")
        part = _read_file(shard).tensors
        twice = sorted(tensors.keys() & part.keys())
        if twice:
            raise CheckpointMismatch(f"{twice[0]} is in two of the files that {path} names; the second is {name}")
        tensors |= part
    return Weights(tensors, step=None, epoch=None, format="sharded Hugging Face folder", metadata={})


def _shard_names(path: Path) -> list[str]:
    if path.stat().st_size > MAX_INDEX:
        raise NotACheckpoint(f"{path} is JSON of more than {MAX_INDEX:,} bytes; give the checkpoint file itself")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotACheckpoint(f"{path} starts like JSON and is none; give a checkpoint file") from error
    mapping = content.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise NotACheckpoint(f"{path} is JSON without a weight_map, so no weights; give the checkpoint file beside it")
    names = sorted({str(name) for name in mapping.values()})
    for name in names:
        # An index names its neighbours only: never another folder, and never another index, which could be itself.
        if Path(name).name != name or name in ("", "..") or name.endswith(".json"):
            raise NotACheckpoint(f"{path} names {name!r}, which is not a weights file beside it")
    return names


# common to all


def _weights(path: Path, kind: str, content: Mapping[object, object], metadata: dict[str, object]) -> Weights:
    # Without what a pickle may have put next to the values, methods of its own included.
    tensors = {name: Tensor.detach(value) for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) < len(content) or not content:
        others = [str(name) for name in content if name not in tensors]
        found = f"other things than tensors: {', '.join(others[:8])}" if others else "nothing"
        raise NotACheckpoint(
            f"{path} ({kind}) holds {found}; expected tensors by name, alone or under `state_dict` or `av_model_sd`"
        )
    require_backed(path, path.stat().st_size, tensors.items())
    step = _whole_number(metadata.get("step", metadata.get("global_step")))
    epoch = _whole_number(metadata.get("epoch"))
    return Weights(strip_prefixes(tensors.items(), path), step=step, epoch=epoch, format=kind, metadata=metadata)


def require_backed(path: Path, size: int, tensors: Iterable[tuple[object, Tensor]]) -> None:
    """Raise NotACheckpoint where tensors are larger than what stands behind them in the file of `size` bytes.

    A tensor of stride 0 is as large as its shape says once it is copied, and costs a file nothing.
    """
    total = 0
    for name, tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_meta:
            continue  # whoever needs values refuses these
        claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        total += claimed
        if claimed > stored:
            raise NotACheckpoint(
                f"{path}: {str(name)[:80]} is {list(tensor.shape)}, {claimed:,} bytes, of which the file has "
                f"{stored:,}; save it contiguous"
            )
    if total > VIEWS * size + (1 << 20):
        raise NotACheckpoint(
            f"{path} announces {total:,} bytes of tensors and has {size:,}; save each tensor with values of its own"
        )


def _whole_number(value: object) -> int | None:
    """`value` as int; numpy's integers count, and safetensors' header knows strings only."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def strip_prefixes(tensors: Iterable[tuple[object, Tensor]], path: Path) -> dict[str, Tensor]:
    """`tensors` by names without wrappers' prefixes. Raises CheckpointMismatch where two names become one."""
    stripped: dict[str, Tensor] = {}
    original: dict[str, str] = {}
    for key, tensor in tensors:
        name = _strip(str(key), PREFIXES)
        if name in stripped:
            raise CheckpointMismatch(
                f"{path} holds both {original[name]} and {key}, which are one parameter without their prefixes; "
                "save one model only"
            )
        stripped[name], original[name] = tensor, str(key)
    return stripped


def _strip(key: str, prefixes: Iterable[str]) -> str:
    for prefix in prefixes:
        if key.startswith(prefix):
            return _strip(key[len(prefix) :], prefixes)
    return key


# from a file's tensors to a module's


def copied(path: Path | str, tensors: dict[str, Tensor], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Copies off the mapped file, one tensor at a time: the training run may replace the file while the model is used.

    Empties `tensors`, so that there are never two copies of all weights. Raises NonFinite.
    """
    copies = {name: tensors.pop(name).to(device=device, dtype=dtype, copy=True) for name in list(tensors)}
    broken = [name for name, tensor in copies.items() if not is_finite(tensor)]
    if broken:
        raise NonFinite(
            f"{path} has NaN or infinity in {len(broken)} of {len(copies)} tensors, read as {str(dtype)[6:]}: "
            f"{some(broken)}; the run has diverged by this step, or its values do not fit the dtype"
        )
    return copies


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor."""
    # One pass and no temporary, unlike isfinite: NaN and infinities come through min and max.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def is_plain(tensor: Tensor) -> bool:
    """Whether a parameter can be this tensor: floating-point, dense, and with data."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and little-endian float32 values, by sorted name: 64 hexadecimal digits.

    It identifies weights, not files: the same weights in several containers and dtypes that hold them have one digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def listed(kind: str, names: Iterable[str]) -> list[str]:
    """`2 missing: a, b` as a part of a message, or nothing where there are no names."""
    names = list(names)
    return [f"{len(names)} {kind}: {some(names)}"] if names else []


def some(names: list[str]) -> str:
    """The first of `names` and how many more there are."""
    return first_few(names, SHOWN)
