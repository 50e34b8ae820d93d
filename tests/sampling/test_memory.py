from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling_reference import tiny_model

from evalsvc.sampling import SamplerSpec, SamplingParams, memory
from evalsvc.sampling.memory import available_bytes, footprint
from evalsvc.sampling.sampler import Sampler

IMAGE_ROWS = range(20, 36)
SPEC = SamplerSpec(IMAGE_ROWS, length=6, params=SamplingParams(), batch=4, bucket=4)


@pytest.mark.parametrize("path", ["plain", "graph"])
def test_keys_and_values_are_predicted_exactly(path: Any) -> None:
    """They are most of it. Each path rounds the slots in its own way."""
    model = tiny_model("rotary", dtype="float32")
    spec = replace(SPEC, path=path, cache_dtype="bfloat16")
    cache: Any = Sampler(model, spec, longest=12).step.cache
    assert footprint(model.config, spec, 12, torch.float32).cache == cache.keys.nbytes + cache.values.nbytes


def test_decoding_beside_counts() -> None:
    """On a CPU images are decoded between two batches, when nothing of a step is left; on a GPU beside the next."""
    model = tiny_model("rotary")
    alone = footprint(model.config, SPEC, 12, torch.float64)
    small, large = (footprint(model.config, SPEC, 12, torch.float64, reserved=size) for size in (1, 10**9))
    assert small.total == alone.total
    assert large.total == alone.total - alone.step + 10**9
    gpu = footprint(model.config, SPEC, 12, torch.float64, device="cuda", reserved=1)
    assert gpu.transient == gpu.step + 1


def test_workspaces_of_products_count_on_a_gpu() -> None:
    """cuBLAS keeps one for each stream that it has worked on."""
    model = tiny_model("rotary")
    cpu, gpu = (footprint(model.config, SPEC, 12, torch.float64, device=device) for device in ("cpu", "cuda:1"))
    assert (cpu.workspaces, gpu.workspaces) == (0, 3 * 32 * 2**20)
    assert gpu.total == gpu.weights + gpu.packed + gpu.cache + gpu.step + gpu.workspaces


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    """Pages of files are in a group's usage and yet free: a worker that had read its checkpoint once looked full."""
    membership = tmp_path / "membership"
    membership.write_text("0::/service/worker\n")
    root = tmp_path / "fs"
    write(root / "service/worker", memory__max="max\n", memory__current="5\n")
    assert memory._group_bytes(root, membership) is None
    stat = "anon 300\ninactive_file 150\nactive_file 50\n"
    write(root / "service", memory__max="1000\n", memory__current="600\n", memory__stat=stat)
    assert memory._group_bytes(root, membership) == 600
    write(root / "service/worker", memory__max="500\n", memory__current="450\n")
    assert memory._group_bytes(root, membership) == 50


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    """In a container the path is the host's, and only the top is there."""
    membership = tmp_path / "membership"
    membership.write_text("12:cpu:/docker/abc\n4:memory:/docker/abc\n")
    write(
        tmp_path / "fs/memory",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="600\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 0\n",
    )
    assert memory._group_bytes(tmp_path / "fs", membership) == 500


def test_what_torch_made_of_an_error_counts() -> None:
    """torch.compile has its own error for everything: once a worker that ran out of memory looked like a bug."""
    assert memory.is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't"))
    assert not memory.is_out_of_memory(RuntimeError("shapes differ"))
    wrapper = RuntimeError("InternalTorchDynamoError: MemoryError: std::bad_alloc")
    assert not memory.is_out_of_memory(wrapper)
    wrapper.__context__ = MemoryError("std::bad_alloc")  # what `raise … from None` leaves
    assert memory.is_out_of_memory(wrapper)


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
    ],
)
def test_libraries_of_a_gpu_run_out_of_memory_in_their_own_words(
    kind: Callable[[str], BaseException], message: str, expected: bool
) -> None:
    """Each takes memory behind the allocator's back: such a shard once failed instead of halving its batch."""
    assert memory.is_out_of_memory(kind(message)) is expected


def test_there_is_memory_here() -> None:
    found = available_bytes("cpu")
    assert found is None or 10**7 < found < 10**14
