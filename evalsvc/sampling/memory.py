"""How much memory sampling takes, how much there is, and whether it ran out."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from evalsvc.models import DecodePath, Transformer, packed_bytes
from evalsvc.models.decoding import SPAN, rounded_slots
from evalsvc.sampling.sampler import CACHE_DTYPES, SamplerSpec, cache_bytes, chosen_path
from evalsvc.spec.model_config import ModelConfig

WORKSPACE_BYTES = 32 << 20
"""That cuBLAS keeps for each stream of a thread on Hopper and later; on older GPUs it is 8 MiB."""
WORKSPACES = 3
"""Streams with products: sampling's own and the one that graphs are captured on, and that of decoding."""

Result = TypeVar("Result")

CGROUPS = Path("/sys/fs/cgroup")

OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
)
"""What a plain RuntimeError or torch.AcceleratorError says where memory ran out: torch's allocator for the CPU, the
driver, cuBLAS and its relatives (CUBLAS_STATUS_ALLOC_FAILED), and cuDNN's newer names."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that sampling takes on its device, by what they are for."""

    weights: int
    """The model's."""
    packed: int
    """Copies of them that are laid out for the machine."""
    cache: int
    """Keys and values."""
    step: int
    """What a step, or the prompts' first pass, makes and drops again; and what CUDA graphs keep of their steps."""
    workspaces: int
    """What cuBLAS keeps for its products."""
    beside: int
    """What the caller makes and drops between two batches: decoding, features."""
    overlapping: bool
    """Whether the caller does so while the next batch is drawn."""

    @property
    def transient(self) -> int:
        return self.step + self.beside if self.overlapping else max(self.step, self.beside)

    @property
    def total(self) -> int:
        return self.weights + self.packed + self.cache + self.workspaces + self.transient


def footprint(
    config: ModelConfig,
    spec: SamplerSpec,
    prompt_length: int,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    beside: int = 0,
) -> Footprint:
    """What `generate` takes for prompts padded to `prompt_length` at most, the model included."""
    where = torch.device(device)
    path = chosen_path(config, spec, dtype, where)
    capacity = rounded_slots(prompt_length + spec.length - 1, path)
    laid_out = path != "plain" or spec.weights != "plain"
    return Footprint(
        weights=weight_count(config) * dtype.itemsize,
        packed=packed_bytes(config, len(spec.image_ids), dtype, spec.weights, where) if laid_out else 0,
        cache=cache_bytes(config, spec.rows, capacity, _cache_dtype(spec, dtype)),
        step=_graph_bytes(config, spec, capacity, path)
        + max(_step_bytes(config, spec, capacity), _prefill_bytes(config, spec, prompt_length, dtype)),
        workspaces=WORKSPACES * WORKSPACE_BYTES if where.type == "cuda" else 0,
        beside=beside,
        overlapping=where.type == "cuda",
    )


def predicted_bytes(
    config: ModelConfig, spec: SamplerSpec, prompt_length: int, dtype: torch.dtype, device: str = "cpu"
) -> int:
    """Bytes that `generate` takes beside the model's weights, see `footprint`."""
    found = footprint(config, spec, prompt_length, dtype, device=device)
    return found.total - found.weights


@cache
def weight_count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


def _cache_dtype(spec: SamplerSpec, dtype: torch.dtype) -> torch.dtype:
    return dtype if spec.cache_dtype is None else CACHE_DTYPES[spec.cache_dtype]


def _step_bytes(config: ModelConfig, spec: SamplerSpec, capacity: int) -> int:
    """Scores of one layer; logits as they come, guided and warped; float64 noise and what it is made of."""
    scores = 2 * 4 * spec.rows * config.n_heads * capacity
    return scores + len(spec.image_ids) * (spec.rows * 4 * 2 + spec.batch * 8 * 3)


def _graph_bytes(config: ModelConfig, spec: SamplerSpec, capacity: int, path: DecodePath) -> int:
    """A CUDA graph keeps its logits and what its layers pass on, and there is one for each span."""
    each = spec.rows * 4 * (len(spec.image_ids) + 4 * config.ffn_dim)
    return capacity // SPAN * each if path == "graph" else 0


def _prefill_bytes(config: ModelConfig, spec: SamplerSpec, prompt_length: int, dtype: torch.dtype) -> int:
    """The prompts' own keys and values, and the widest place of a layer; later the keys once more, for the steps."""
    widest = 2 * config.hidden_dim + max(9 * config.attention_dim, 4 * config.ffn_dim)
    activations = spec.batch * prompt_length * widest * dtype.itemsize
    prefix = cache_bytes(config, spec.batch, prompt_length, _cache_dtype(spec, dtype))
    return prefix + max(activations, prefix // 2)


def available_bytes(device: str | torch.device) -> int | None:
    """Bytes that this process can still take on `device`; None where the system does not say.

    On a CPU the least of what the machine, the control group and the address space leave, pages of files counted as
    free. On a GPU what is free, and what torch keeps unused.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = (_machine_bytes(), _group_bytes(CGROUPS, Path("/proc/self/cgroup")), _address_space_bytes())
    return min((limit for limit in limits if limit is not None), default=None)


def _machine_bytes() -> int | None:
    fields = _fields(Path("/proc/meminfo"))
    return 1024 * fields["MemAvailable:"] if "MemAvailable:" in fields else None


def _group_bytes(root: Path, membership: Path) -> int | None:
    """What the tightest control group around this process leaves; version 2, or 1 with its memory controller."""
    left = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / controllers
            group = top / path.lstrip("/")
            left += [_left_in(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min((one for one in left if one is not None), default=None)


def _left_in(group: Path) -> int | None:
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        found, used = _lines(group / limit), _lines(group / usage)
        if found and used and found[0].isdecimal():
            fields = _fields(group / "memory.stat")
            # Version 1 prefixes what counts the groups below as well.
            files = sum(fields.get(f"total_{name}", fields.get(name, 0)) for name in ("inactive_file", "active_file"))
            return max(0, int(found[0]) - int(used[0]) + files)
    return None


def _address_space_bytes() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _lines(Path("/proc/self/statm"))
    if limit == resource.RLIM_INFINITY or not used:
        return None
    return max(0, limit - int(used[0].split()[0]) * resource.getpagesize())


def _fields(path: Path) -> dict[str, int]:
    """The first number of each line under its first word."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that torch has made it of, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # torch.compile wraps what is raised inside of it.
    inner = error.__cause__ or error.__context__
    message = str(error)
    return any(part in message for part in OUT_OF_MEMORY) or (inner is not None and is_out_of_memory(inner))


def release() -> None:
    """Give back what was left behind, reference cycles and torch's own free blocks included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """Do `work`: its result and "", or None and why memory ran out. What else it raises comes through.

    The error is gone by then, and with it the frames that hold what was allocated.
    """
    try:
        return work(), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, " ".join(str(error).split()) or "MemoryError"
