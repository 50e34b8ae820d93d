"""Memory for sampling: predicted use, available bytes, and detection of exhausted memory."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from evalsvc.models import Transformer, packed_bytes
from evalsvc.models.decoding import PATHS, rounded_slots
from evalsvc.models.packing import copied_bytes
from evalsvc.sampling.sampler import SamplerSpec, cache_bytes, chosen_path
from evalsvc.spec.model_config import ModelConfig

WORKSPACE_BYTES = 32 << 20
"""Workspace that cuBLAS keeps per stream and thread on Hopper and later; 8 MiB on older GPUs."""
WORKSPACES = 3
"""Number of streams with products: sampling's, the stream for capturing graphs, and the stream for decoding."""

Result = TypeVar("Result")
CGROUPS = Path("/sys/fs/cgroup")
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "DEVICE_ALLOCATION_FAILED",
)
"""Texts of a plain RuntimeError or torch.AcceleratorError when memory runs out, from torch's CPU allocator, the driver,
Triton, cuBLAS and its relatives, and cuDNN's newer names. cuBLAS reports a missing workspace of a new thread as
NOT_INITIALIZED."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of sampling on its device, by purpose."""

    weights: int
    packed: int
    """Copies of the weights for the steps: laid out for the machine, or parts that are not together in the model."""
    cache: int
    step: int
    """Temporary tensors of a step, or of the prompts' first pass, and tensors that CUDA graphs keep."""
    workspaces: int
    reserved: int
    """Temporary memory of the caller between two batches: decoding, features."""
    overlapping: bool
    """Whether the caller uses its temporary memory while the next batch is drawn."""

    @property
    def transient(self) -> int:
        return self.step + self.reserved if self.overlapping else max(self.step, self.reserved)

    @property
    def added(self) -> int:
        """Return the bytes in addition to the model's weights."""
        return self.packed + self.cache + self.workspaces + self.transient

    @property
    def total(self) -> int:
        return self.weights + self.added


def footprint(
    config: ModelConfig,
    spec: SamplerSpec,
    prompt_length: int,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    reserved: int = 0,
) -> Footprint:
    """Return the memory of `generate`, with the model, for prompts padded to at most `prompt_length`."""
    where, codes = torch.device(device), len(spec.image_ids)
    path = chosen_path(config, spec, dtype, where)
    way = PATHS.get(path)
    capacity = rounded_slots(prompt_length + spec.read_before(spec.length - 1), path)
    laid_out = (way is not None and way.packed) or spec.weights != "plain"
    packed = packed_bytes(config, codes, dtype, spec.weights, where) if laid_out else 0
    # Graphs keep logits and the outputs of layers, one graph per span.
    graphs = capacity // way.slots * spec.rows * 4 * (codes + 4 * config.ffn_dim) if way and way.replayed else 0
    # A step has the scores of one layer, logits as computed, guided and warped, and float64 noise.
    step = 2 * 4 * spec.rows * config.n_heads * capacity + codes * (spec.rows * 4 * 2 + spec.batch * 8 * 3)
    cached, read = spec.dtype_of_cache(dtype), spec.dtype_of_attention(dtype)
    if cached != read:  # without a kernel for the GPU, one layer's keys and values are converted at a time
        step += cache_bytes(config, spec.rows, capacity, read) // config.n_layers
    projected = config.attention_dim + 2 * config.kv_dim
    widest = 2 * config.hidden_dim + max(3 * projected, 4 * config.ffn_dim)
    prefix = cache_bytes(config, spec.batch, prompt_length, read)
    prefill = prefix + max(spec.batch * prompt_length * widest * dtype.itemsize, prefix // 2)
    return Footprint(
        weights=_weight_count(config) * dtype.itemsize,
        packed=packed or copied_bytes(config, codes, dtype, isinstance(spec.rows_of_codes, range)),
        cache=cache_bytes(config, spec.rows, capacity, cached),
        step=graphs + max(step, prefill),
        workspaces=WORKSPACES * WORKSPACE_BYTES if where.type == "cuda" else 0,
        reserved=reserved,
        overlapping=where.type == "cuda",
    )


@cache
def _weight_count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


def available_bytes(device: str | torch.device) -> int | None:
    """Return the bytes that this process can still allocate on `device`; None where the system does not report them. On
    a CPU, the minimum over the machine, the control group and the address space, with file pages counted as free."""
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
        return min(int(free) + torch.cuda.memory_reserved(device), allowed) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_group_bytes(CGROUPS, Path("/proc/self/cgroup"))]
    if (kilobytes := _fields(Path("/proc/meminfo")).get("MemAvailable:")) is not None:
        limits.append(1024 * kilobytes)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _lines(Path("/proc/self/statm"))
    if address_space != resource.RLIM_INFINITY and used:
        limits.append(max(0, address_space - int(used[0].split()[0]) * resource.getpagesize()))
    return min((limit for limit in limits if limit is not None), default=None)


def _group_bytes(root: Path, membership: Path) -> int | None:
    # Version 2, or version 1 with its memory controller.
    left = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / controllers
            group = top / path.lstrip("/")
            left += [_left_in(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min((limit for limit in left if limit is not None), default=None)


def _left_in(group: Path) -> int | None:
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        most, used = _lines(group / limit), _lines(group / usage)
        if most and used and most[0].isdecimal():
            fields = _fields(group / "memory.stat")
            # Version 1 has the prefix `total_` for numbers that include the groups below.
            files = sum(fields.get(f"total_{name}", fields.get(name, 0)) for name in ("inactive_file", "active_file"))
            return max(0, int(most[0]) - int(used[0]) + files)
    return None


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or the error that torch.compile wrapped, says that memory ran out."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return isinstance(error, (MemoryError, torch.OutOfMemoryError))
    inner = error.__cause__ or error.__context__
    return any(part in str(error) for part in OUT_OF_MEMORY) or (inner is not None and is_out_of_memory(inner))


def release() -> None:
    """Free unreferenced memory, with reference cycles and torch's unused blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """Run `work`; return its result and "", or None and the message where memory ran out. The error is dropped before
    the return, and with it the frames that hold the allocated memory."""
    try:
        return work(), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, " ".join(str(error).split()) or "MemoryError"
