"""How much memory sampling takes, how much there is, and what follows from both.

`generate_fitting` → `largest_batch`, then `generate`; and again with half the batch where memory ran out all the same.
The batch moves codes by rounding at most, so an evaluation goes on with a smaller one; by how much is measured.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from evalsvc.errors import OutOfMemory
from evalsvc.model_config import ModelConfig
from evalsvc.models import DecodePath, Transformer, packed_bytes
from evalsvc.models.decoding import BLOCK, SPAN
from evalsvc.sampling.sampler import (
    CACHE_DTYPES,
    Prompt,
    SamplerSpec,
    Samples,
    cache_bytes,
    chosen_path,
    generate,
)

HEADROOM = 1.1
"""Of what is predicted, which is right to a tenth."""

WORKSPACE_BYTES = 32 << 20
"""That cuBLAS keeps for each stream of a thread on Hopper and later, by `getChosenWorkspaceSize` in torch's
CUDABlas sources; on older GPUs it is 8 MiB."""
WORKSPACES = 3
"""Streams with products: sampling's own and the one that graphs are captured on, and that of decoding."""

PROBE_PROMPTS = 4
PROBE_CODES = 64
"""Codes of each of those prompts that are drawn at both batches, to see how many are equal."""

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
    capacity = _rounded(prompt_length + spec.length - 1, path)
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


def _rounded(slots: int, path: DecodePath) -> int:
    size = {"compiled": BLOCK, "graph": SPAN}.get(path, 1)
    return -(-slots // size) * size


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
    """The prompts' own keys and values, and the widest place of a layer: gate and up with their product, or queries,
    keys and values while they are turned. Later the keys once more, while they are laid out for the steps.
    """
    widest = 2 * config.hidden_dim + max(9 * config.attention_dim, 4 * config.ffn_dim)
    activations = spec.batch * prompt_length * widest * dtype.itemsize
    prefix = cache_bytes(config, spec.batch, prompt_length, _cache_dtype(spec, dtype))
    return prefix + max(activations, prefix // 2)


def available_bytes(device: str | torch.device) -> int | None:
    """Bytes that this process can still take on `device`; None where the system does not say.

    On a CPU the least of what the machine has, what the control group allows and what the address space allows: pages
    of files count as free, since they go when memory is needed. On a GPU what is free, and what torch keeps unused.
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


@dataclass(frozen=True)
class BatchShape:
    """In what batches prompts are drawn, and why; part of the provenance."""

    batch: int
    declared: int
    """What the suite asked for."""
    reason: Literal["declared", "predicted", "out of memory"]
    """Why it is `batch`: it fits, the declared one was predicted not to, or a larger one ran out of memory."""
    predicted_bytes: int
    """Beside the model's weights."""
    available_bytes: int | None
    """Before anything was allocated; None: the system does not say."""
    drawn: int
    """Prompts that had been drawn before, in larger batches."""
    agreement: float | None
    """Share of equal codes where some of them were drawn again in this batch; None where none had been drawn."""
    compared: int
    """Codes that this share is of."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def largest_batch(
    config: ModelConfig,
    spec: SamplerSpec,
    prompt_length: int,
    dtype: torch.dtype,
    available: int,
    *,
    device: str = "cpu",
    beside: int = 0,
    packed: bool = False,
) -> int:
    """The largest of `spec.batch`, its half, its quarter … that is predicted to fit into `available` bytes.

    With `packed` the laid out copies are there already.

    Raises:
        OutOfMemory: not even one image fits.
    """
    batch = spec.batch
    while True:
        found = footprint(config, replace(spec, batch=batch), prompt_length, dtype, device=device, beside=beside)
        needed = int(HEADROOM * (found.total - found.weights - (found.packed if packed else 0)))
        if needed <= available:
            return batch
        if batch == 1:
            raise OutOfMemory(
                f"sampling one image at a time takes {_megabytes(needed)} beside the model, and {device} has "
                f"{_megabytes(available)} left; evaluate in bfloat16, run fewer workers, or use a device with more "
                "memory"
            )
        batch //= 2


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def generate_fitting(
    model: Transformer,
    prompts: Sequence[Prompt],
    spec: SamplerSpec,
    on_step: Callable[[int], None] | None = None,
    *,
    beside: int = 0,
    on_shape: Callable[[BatchShape], None] | None = None,
) -> Iterator[Samples]:
    """`generate` in the largest batch, up to the declared one, that fits into memory beside `beside` bytes.

    Where memory runs out all the same, the buffers are dropped, the batch is halved, and what was not drawn yet is
    drawn in it. `on_shape` is told the first batch and every change. `on_step` counts as in `generate`, less the codes
    of a batch that ran out of memory.

    Raises:
        OutOfMemory: a single image does not fit.
        Others: as `generate`.
    """
    generate(model, prompts, spec)  # says at once what it refuses
    return _Fitting(model, prompts, spec, on_step or _ignore, beside, on_shape or _ignore).run()


class _Fitting:
    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Prompt],
        spec: SamplerSpec,
        on_step: Callable[[int], None],
        beside: int,
        on_shape: Callable[[BatchShape], None],
    ) -> None:
        weight = model.tok_embeddings.weight
        # Of the declared batch: with a smaller one, or for the probe's few codes, another might be chosen.
        path = chosen_path(model.config, spec, weight.dtype, weight.device)
        self.model, self.prompts, self.spec = model, prompts, replace(spec, path=path)
        self.on_step, self.on_shape = on_step, on_shape
        self.beside, self.declared = beside, spec.batch
        self.left = list(range(len(prompts)))
        """Prompts that were not drawn yet."""
        self.probe: tuple[tuple[int, ...], Tensor] | None = None
        """Prompts and their codes [P, PROBE_CODES] in the first batch that was drawn."""

    def run(self) -> Iterator[Samples]:
        if not self.prompts:
            return
        self._choose()
        while self.left:
            yield from self._draw()

    def _choose(self) -> None:
        _release()  # what an earlier shard has left would count against this one
        available = available_bytes(self._weight.device)
        reason: Literal["declared", "predicted"] = "declared"
        if available is not None:
            batch = largest_batch(
                self.model.config,
                self.spec,
                self._longest,
                self._weight.dtype,
                available,
                device=str(self._weight.device),
                beside=self.beside,
                packed=self.model.packed is not None,
            )
            reason = "declared" if batch == self.declared else "predicted"
            self.spec = replace(self.spec, batch=batch)
        self._tell(reason, available, None, 0)

    def _draw(self) -> Iterator[Samples]:
        """Batches until all prompts are drawn, or until memory runs out and the batch was halved."""
        left = tuple(self.left)
        before = (len(self.prompts) - len(left)) * self.spec.length
        batches = generate(
            self.model, [self.prompts[index] for index in left], self.spec, lambda codes: self.on_step(before + codes)
        )
        while True:
            failed = ""
            try:
                samples = next(batches, None)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = str(error) or "MemoryError"
            if failed:  # not inside `except`, where the error would hold the frames and so the buffers
                del batches
                self._halve(failed)
                return
            if samples is None:
                return
            indices = tuple(left[index] for index in samples.indices)
            self.left = [index for index in self.left if index not in indices]
            if self.probe is None:
                self.probe = indices[:PROBE_PROMPTS], samples.codes[:PROBE_PROMPTS, :PROBE_CODES].cpu()
            yield replace(samples, indices=indices)

    def _halve(self, failed: str) -> None:
        available = None
        while failed:
            if self.spec.batch == 1:
                raise OutOfMemory(
                    "memory ran out while one image at a time was sampled; evaluate in bfloat16, run fewer workers, or "
                    f"use a device with more memory ({' '.join(failed.split())})"
                )
            self.spec = replace(self.spec, batch=self.spec.batch // 2)
            _release()
            available = available_bytes(self._weight.device)
            failed, agreement, compared = self._compare()
        self._tell("out of memory", available, agreement, compared)

    def _compare(self) -> tuple[str, float | None, int]:
        """Why the probe could not be drawn, if so; else the share of its codes that are equal now, and their number."""
        if self.probe is None:
            return "", None, 0
        indices, codes = self.probe
        spec = replace(self.spec, length=codes.shape[1])
        try:
            again = torch.empty_like(codes)
            for samples in generate(self.model, [self.prompts[index] for index in indices], spec):
                again[list(samples.indices)] = samples.codes.cpu()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return str(error) or "MemoryError", None, 0
        return "", float((again == codes).double().mean()), codes.numel()

    def _tell(
        self,
        reason: Literal["declared", "predicted", "out of memory"],
        available: int | None,
        agreement: float | None,
        compared: int,
    ) -> None:
        device = str(self._weight.device)
        predicted = predicted_bytes(self.model.config, self.spec, self._longest, self._weight.dtype, device)
        drawn = len(self.prompts) - len(self.left)
        self.on_shape(
            BatchShape(self.spec.batch, self.declared, reason, predicted, available, drawn, agreement, compared)
        )

    @property
    def _weight(self) -> Tensor:
        return self.model.tok_embeddings.weight

    @property
    def _longest(self) -> int:
        return max(self.spec.padded_length(prompt) for prompt in self.prompts)


def _release() -> None:
    """Give back what was left behind, reference cycles and torch's own free blocks included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ignore(_: object) -> None:
    pass
